#include "safetensors.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "json.h"
#include "scratch.h"

const size_t size_of[DTYPES] = {8, 4, 2, 2, 1, 1, 1};
static const char *const codes[DTYPES] = {"F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2", "I8"};

struct bytes {
    const unsigned char *at;
    size_t length;
};

static struct bytes read_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        refuse("%s: %s", path, strerror(errno));
    long length = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    rewind(file);
    unsigned char *content = length < 0 ? NULL : take((size_t)length + 1, 1);
    size_t read = content ? fread(content, 1, (size_t)length, file) : 0;
    fclose(file);
    if (!content || read != (size_t)length)
        refuse("%s: cannot be read", path);
    return (struct bytes){content, read};
}

static enum dtype dtype_of(const char *path, const struct json *entry)
{
    const char *code = json_text(entry, "dtype");
    for (enum dtype dtype = F64; dtype < E4M3; dtype++)
        if (strcmp(code, codes[dtype]) == 0)
            return dtype;
    refuse("%s: tensor '%s' is %s; known are F64, F32, BF16 and F16", path, entry->name, code);
}

static struct tensor *read_tensor(const char *path, const struct json *entry, struct bytes data)
{
    struct tensor *tensor = take(1, sizeof *tensor);
    tensor->name = entry->name;
    tensor->dtype = dtype_of(path, entry);
    tensor->count = 1;
    const struct json *shape = json_get(entry, "shape"), *offsets = json_get(entry, "data_offsets");
    if (!shape || shape->kind != JSON_ARRAY || !offsets || offsets->kind != JSON_ARRAY)
        refuse("%s: tensor '%s' must have a shape and data_offsets", path, entry->name);
    for (const struct json *axis = shape->first; axis; axis = axis->next) {
        size_t size = json_whole(axis);
        if (tensor->rank == MOST_AXES || (size && tensor->count > SIZE_MAX / 8 / size))
            refuse("%s: tensor '%s' is too large, or has more than %d axes", path, entry->name, MOST_AXES);
        tensor->shape[tensor->rank++] = size;
        tensor->count *= size;
    }
    if (!offsets->first || !offsets->first->next)
        refuse("%s: tensor '%s' must have two data_offsets", path, entry->name);
    size_t begin = json_whole(offsets->first), end = json_whole(offsets->first->next);
    if (begin > end || end > data.length || end - begin != tensor->count * size_of[tensor->dtype])
        refuse("%s: tensor '%s': its data_offsets fit neither its shape nor the file", path, entry->name);
    tensor->bytes = data.at + begin;
    return tensor;
}

/* 8 bytes of header length, that many of JSON, and the data. */
struct tensor *read_tensors(const char *path)
{
    struct bytes file = read_file(path);
    uint64_t length = 0;
    for (size_t i = 0; i < 8 && i < file.length; i++)
        length |= (uint64_t)file.at[i] << (8 * i);
    if (file.length < 8 || length > file.length - 8)
        refuse("%s: not a safetensors file: its header ends beyond it", path);
    const struct json *header = json_parse((const char *)file.at + 8, (size_t)length);
    if (header->kind != JSON_OBJECT)
        refuse("%s: not a safetensors file: its header is no object", path);
    struct bytes data = {file.at + 8 + length, file.length - 8 - (size_t)length};
    struct tensor *tensors = NULL;
    for (const struct json *entry = header->first; entry; entry = entry->next) {
        if (strcmp(entry->name, "__metadata__") == 0)
            continue;
        struct tensor *tensor = read_tensor(path, entry, data);
        tensor->next = tensors;
        tensors = tensor;
    }
    return tensors;
}

static void print_header(FILE *file, const struct tensor *tensors)
{
    const char *before = "{";
    size_t offset = 0;
    for (const struct tensor *t = tensors; t; t = t->next, before = ", ") {
        fputs(before, file);
        json_print(file, t->name);
        fprintf(file, ": {\"dtype\": \"%s\", \"shape\": [", codes[t->dtype]);
        for (size_t axis = 0; axis < t->rank; axis++)
            fprintf(file, "%s%zu", axis ? ", " : "", t->shape[axis]);
        size_t end = offset + t->count * size_of[t->dtype];
        fprintf(file, "], \"data_offsets\": [%zu, %zu]}", offset, end);
        offset = end;
    }
    fputs(tensors ? "}" : "{}", file);
}

/* The header is written first, and its length then, into the eight bytes left for it. */
void write_tensors(const char *path, const struct tensor *tensors)
{
    FILE *file = fopen(path, "wb");
    if (!file)
        refuse("%s: %s", path, strerror(errno));
    fwrite("\0\0\0\0\0\0\0", 1, 8, file);
    print_header(file, tensors);
    while (ftell(file) % 8 != 0 && !ferror(file)) /* so that the data are aligned */
        putc(' ', file);
    uint64_t length = (uint64_t)ftell(file) - 8;
    for (const struct tensor *t = tensors; t; t = t->next)
        fwrite(t->bytes, size_of[t->dtype], t->count, file);
    fseek(file, 0, SEEK_SET);
    for (int i = 0; i < 8; i++)
        putc((int)(length >> (8 * i) & 0xFF), file);
    int failed = ferror(file);
    if (fclose(file) != 0 || failed)
        refuse("%s: cannot be written", path);
}

void put(struct tensor **tensors, const char *name, const struct tensor *like, const unsigned char *bytes)
{
    struct tensor *tensor = take(1, sizeof *tensor);
    *tensor = *like;
    tensor->name = name;
    tensor->bytes = bytes;
    tensor->next = *tensors;
    *tensors = tensor;
}

const struct tensor *find(const struct tensor *tensors, const char *name)
{
    while (tensors && strcmp(tensors->name, name) != 0)
        tensors = tensors->next;
    return tensors;
}

const char *joined(const char *a, const char *b, const char *c)
{
    size_t length = strlen(a) + strlen(b) + strlen(c) + 1;
    char *name = take(length, 1);
    snprintf(name, length, "%s%s%s", a, b, c);
    return name;
}

const char *numbered(size_t layer)
{
    char *name = take(24, 1);
    snprintf(name, 24, "%zu.", layer);
    return name;
}
