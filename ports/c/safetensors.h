/* Tensors by name, and the safetensors files that hold them. */

#ifndef SAFETENSORS_H
#define SAFETENSORS_H

#include <stddef.h>

enum { MOST_AXES = 8 };
enum dtype { F64, F32, BF16, F16, E4M3, E5M2, I8, DTYPES }; /* those from E4M3 on are only written */

extern const size_t size_of[DTYPES];

struct tensor {
    const char *name;
    enum dtype dtype;
    size_t rank, shape[MOST_AXES];
    size_t count;               /* of elements */
    const unsigned char *bytes; /* little-endian, row-major */
    struct tensor *next;
};

struct tensor *read_tensors(const char *path);
void write_tensors(const char *path, const struct tensor *tensors);

/* Before the others, of the dtype and shape of `like`. */
void put(struct tensor **tensors, const char *name, const struct tensor *like, const unsigned char *bytes);
const struct tensor *find(const struct tensor *tensors, const char *name); /* NULL where there is none */

/* Names made of others. */
const char *joined(const char *a, const char *b, const char *c);
const char *numbered(size_t layer); /* 0. */

#endif
