/* What the load client and the floor share: time, failing, and one non-blocking loopback socket each way. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SECOND 1000000000LL

/* RFC 6455 section 1.3 gives this key and its answer, so neither side needs SHA-1. */
#define WS_KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define WS_ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

__attribute__((noreturn, format(printf, 1, 2))) static inline void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

static inline int64_t clock_ns(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t) != 0)
        return 0;
    return t.tv_sec * SECOND + t.tv_nsec;
}

static inline int64_t now_ns(void) {
    return clock_ns(CLOCK_MONOTONIC);
}

static inline void *need(void *memory) {
    if (memory == NULL)
        die("out of memory");
    return memory;
}

/* The head of an HTTP message, its CRLFCRLF included, or 0 while it is incomplete. */
static inline size_t head_length(const char *at, size_t length) {
    const char *end = memmem(at, length, "\r\n\r\n", 4);
    return end == NULL ? 0 : (size_t)(end - at) + 4;
}

/* Content-Length of a head of `length` bytes; 0 when there is none. */
static inline size_t content_length(const char *head, size_t length) {
    for (const char *at = head; at != NULL && at < head + length; at = memchr(at, '\n', (size_t)(head + length - at))) {
        if (*at == '\n')
            at++;
        if (strncasecmp(at, "content-length:", 15) == 0)
            return strtoul(at + 15, NULL, 10);
    }
    return 0;
}

#endif
