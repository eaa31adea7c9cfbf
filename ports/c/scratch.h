/* One case at a time: the memory it takes, freed all at once, and the two ways to give it up. */

#ifndef SCRATCH_H
#define SCRATCH_H

#include <setjmp.h>
#include <stddef.h>

enum outcome { ANSWERED, SKIPPED, REFUSED };

/* Where `skip` and `refuse` jump to, and what they say there. */
extern jmp_buf given_up;
extern char reason[1024];

/* Zeroed memory for `count` items, until `release`. Refuses the case where there is none. */
void *take(size_t count, size_t size);
void release(void);

/* The case is not for this port. */
_Noreturn void skip(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The case cannot be answered. */
_Noreturn void refuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
