/* JSON (RFC 8259) as a tree. Whatever is not as asked refuses the case, with the name of the field. */

#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

enum kind { JSON_NULL, JSON_BOOLEAN, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json {
    enum kind kind;
    const char *name;   /* its own, in an object */
    const char *text;   /* a string's, unescaped */
    double number;      /* a number's; 1 for true */
    struct json *first; /* of an array's or an object's items */
    struct json *next;  /* the item after this one */
};

struct json *json_parse(const char *text, size_t length);

/* A member of an object; NULL where there is none. */
const struct json *json_get(const struct json *object, const char *name);

const char *json_text(const struct json *object, const char *name);
double json_number(const struct json *object, const char *name);
size_t json_size(const struct json *object, const char *name);
bool json_true(const struct json *object, const char *name); /* false where there is no such member */

/* A value that must be a whole number, zero or more. */
size_t json_whole(const struct json *value);

void json_print(FILE *file, const char *text); /* as a string, in quotes */

#endif
