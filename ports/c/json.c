#include "json.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "scratch.h"

enum { DEEPEST = 32 };

struct reader {
    const char *at, *end; /* a NUL stands at the end: reading one character ahead is always allowed */
    const char *start;
    int depth;
};

static struct json *value(struct reader *r);

_Noreturn static void unexpected(const struct reader *r, const char *wanted)
{
    refuse("not JSON: %s expected at byte %td", wanted, r->at - r->start);
}

static void skip_space(struct reader *r)
{
    while (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r')
        r->at++;
}

static bool accept(struct reader *r, char c)
{
    skip_space(r);
    if (r->at == r->end || *r->at != c)
        return false;
    r->at++;
    return true;
}

static bool digit(const struct reader *r)
{
    return '0' <= *r->at && *r->at <= '9';
}

static void digits(struct reader *r)
{
    if (!digit(r))
        unexpected(r, "a digit");
    while (digit(r))
        r->at++;
}

/* strtod knows more than JSON does, such as 0x1 and nan: the grammar is checked first. */
static double number(struct reader *r)
{
    const char *start = r->at;
    if (*r->at == '-')
        r->at++;
    if (*r->at == '0')
        r->at++;
    else
        digits(r);
    if (*r->at == '.') {
        r->at++;
        digits(r);
    }
    if (*r->at == 'e' || *r->at == 'E') {
        r->at++;
        if (*r->at == '+' || *r->at == '-')
            r->at++;
        digits(r);
    }
    return strtod(start, NULL);
}

static uint32_t four_hex_digits(struct reader *r)
{
    uint32_t code = 0;
    for (int i = 0; i < 4; i++, r->at++) {
        static const char hex[] = "0123456789abcdef0123456789ABCDEF";
        const char *found = *r->at ? strchr(hex, *r->at) : NULL;
        if (!found)
            unexpected(r, "a hexadecimal digit");
        code = 16 * code + (uint32_t)(found - hex) % 16;
    }
    return code;
}

/* What follows \u: one code unit of UTF-16, or the two of a pair. */
static uint32_t code_point(struct reader *r)
{
    uint32_t high = four_hex_digits(r);
    if (high < 0xD800 || high > 0xDFFF)
        return high;
    if (high > 0xDBFF || r->at[0] != '\\' || r->at[1] != 'u')
        unexpected(r, "a pair of surrogates");
    r->at += 2;
    uint32_t low = four_hex_digits(r);
    if (low < 0xDC00 || low > 0xDFFF)
        unexpected(r, "a pair of surrogates");
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
}

static char *put_utf8(char *to, uint32_t code)
{
    if (code < 0x80) {
        *to++ = (char)code;
        return to;
    }
    int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned char lead[] = {0, 0xC0, 0xE0, 0xF0};
    *to++ = (char)(lead[more] | code >> (6 * more));
    while (more--)
        *to++ = (char)(0x80 | ((code >> (6 * more)) & 0x3F));
    return to;
}

static const char *string(struct reader *r)
{
    if (!accept(r, '"'))
        unexpected(r, "a string");
    size_t length = 0; /* at most: an escape is longer than what it stands for */
    for (const char *c = r->at; c < r->end && *c != '"'; c += *c == '\\' && c + 1 < r->end ? 2 : 1)
        length += 2;
    char *text = take(length + 1, 1), *to = text;
    while (*r->at != '"') {
        if ((unsigned char)*r->at < 0x20) /* the end, too, is a NUL */
            unexpected(r, "the end of a string");
        if (*r->at != '\\') {
            *to++ = *r->at++;
            continue;
        }
        static const char escapes[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
        char escape = *++r->at;
        const char *found = escape ? strchr(escapes, escape) : NULL;
        if (!found && escape != 'u')
            unexpected(r, "an escape");
        r->at++;
        uint32_t code = found ? (uint32_t)meanings[found - escapes] : code_point(r);
        if (code == 0)
            unexpected(r, "a character other than NUL");
        to = put_utf8(to, code);
    }
    r->at++;
    return text;
}

static struct json *items(struct reader *r, enum kind kind, char close)
{
    struct json *all = take(1, sizeof *all), **end = &all->first;
    all->kind = kind;
    if (++r->depth > DEEPEST)
        unexpected(r, "less depth");
    if (!accept(r, close)) {
        do {
            const char *name = kind == JSON_OBJECT ? string(r) : NULL;
            if (name && !accept(r, ':'))
                unexpected(r, "a colon");
            *end = value(r);
            (*end)->name = name;
            end = &(*end)->next;
        } while (accept(r, ','));
        if (!accept(r, close))
            unexpected(r, "a comma or the end of a list");
    }
    r->depth--;
    return all;
}

static bool word(struct reader *r, const char *letters)
{
    size_t length = strlen(letters);
    if ((size_t)(r->end - r->at) < length || memcmp(r->at, letters, length) != 0)
        return false;
    r->at += length;
    return true;
}

static struct json *value(struct reader *r)
{
    if (accept(r, '{'))
        return items(r, JSON_OBJECT, '}');
    if (accept(r, '['))
        return items(r, JSON_ARRAY, ']');
    struct json *one = take(1, sizeof *one);
    if (*r->at == '"') {
        one->kind = JSON_STRING;
        one->text = string(r);
    } else if (*r->at == '-' || digit(r)) {
        one->kind = JSON_NUMBER;
        one->number = number(r);
    } else if (word(r, "true") || word(r, "false")) {
        one->kind = JSON_BOOLEAN;
        one->number = r->at[-2] == 'u'; /* of tr-u-e */
    } else if (!word(r, "null")) {
        unexpected(r, "a value");
    }
    return one;
}

struct json *json_parse(const char *text, size_t length)
{
    char *copy = take(length + 1, 1);
    if (length)
        memcpy(copy, text, length);
    struct reader r = {copy, copy + length, copy, 0};
    struct json *all = value(&r);
    skip_space(&r);
    if (r.at != r.end)
        unexpected(&r, "the end");
    return all;
}

const struct json *json_get(const struct json *object, const char *name)
{
    if (object->kind != JSON_OBJECT)
        refuse("not an object, where one with a field '%s' was expected", name);
    const struct json *item = object->first;
    while (item && strcmp(item->name, name) != 0)
        item = item->next;
    return item;
}

static const struct json *field(const struct json *object, const char *name, enum kind kind, const char *words)
{
    const struct json *found = json_get(object, name);
    if (!found || found->kind != kind)
        refuse("field '%s' %s; it must be %s", name, found ? "is of another type" : "is missing", words);
    return found;
}

const char *json_text(const struct json *object, const char *name)
{
    return field(object, name, JSON_STRING, "a string")->text;
}

double json_number(const struct json *object, const char *name)
{
    return field(object, name, JSON_NUMBER, "a number")->number;
}

size_t json_size(const struct json *object, const char *name)
{
    return json_whole(field(object, name, JSON_NUMBER, "a number"));
}

bool json_true(const struct json *object, const char *name)
{
    const struct json *found = json_get(object, name);
    return found && found->kind == JSON_BOOLEAN && found->number != 0;
}

size_t json_whole(const struct json *value)
{
    double number = value->number;
    if (value->kind != JSON_NUMBER || !(0 <= number && number < 9e15) || number != (double)(size_t)number)
        refuse("a whole number, zero or more, was expected%s%s", value->name ? " in " : "", value->name ? value->name : "");
    return (size_t)number;
}

void json_print(FILE *file, const char *text)
{
    putc('"', file);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            fprintf(file, "\\%c", c);
        else if (c < 0x20)
            fprintf(file, "\\u%04x", c);
        else
            putc(c, file);
    }
    putc('"', file);
}
