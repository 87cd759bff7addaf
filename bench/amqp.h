/*
 * A producer's side of AMQP 0-9-1, as far as a service needs it that knows nothing of the gateway: connect as guest,
 * publish plain messages of JSON with confirms. Frames: specification 4.2; methods: 1.4 to 1.8.
 */
#ifndef BENCH_AMQP_H
#define BENCH_AMQP_H

#include "common.h"

#include <arpa/inet.h>
#include <endian.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

#define AMQP_OVERHEAD 8 /* bytes of a frame beside its payload */
#define AMQP_LONGEST 131072
#define AMQP_CHANNEL 1

enum { AMQP_METHOD = 1, AMQP_HEADER = 2, AMQP_BODY = 3, AMQP_END = 0xCE };
enum { AMQP_START = 10 << 16 | 10, AMQP_TUNE = 10 << 16 | 30, AMQP_ACK = 60 << 16 | 80 };

struct amqp_writer {
    char *start, *at;
};

static inline void amqp_put(struct amqp_writer *w, uint64_t value, int bytes) {
    for (int i = bytes - 1; i >= 0; i--)
        *w->at++ = (char)(value >> (8 * i));
}

static inline void amqp_text(struct amqp_writer *w, const char *text, int length_bytes) {
    size_t length = strlen(text);
    amqp_put(w, length, length_bytes);
    memcpy(w->at, text, length);
    w->at += length;
}

/* Begin a frame; its size is filled in by `amqp_end`. */
static inline void amqp_begin(struct amqp_writer *w, int kind, int channel) {
    w->start = w->at;
    amqp_put(w, (uint64_t)kind, 1);
    amqp_put(w, (uint64_t)channel, 2);
    amqp_put(w, 0, 4);
}

static inline void amqp_method(struct amqp_writer *w, int channel, int class, int method) {
    amqp_begin(w, AMQP_METHOD, channel);
    amqp_put(w, (uint64_t)class, 2);
    amqp_put(w, (uint64_t)method, 2);
}

static inline void amqp_end(struct amqp_writer *w) {
    char *end = w->at;
    w->at = w->start + 3;
    amqp_put(w, (uint64_t)(end - w->start - 7), 4);
    w->at = end;
    amqp_put(w, AMQP_END, 1);
}

static inline uint64_t amqp_number(const char *at, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++)
        value = value << 8 | (uint8_t)at[i];
    return value;
}

/* The bytes of the first frame, or 0 while it is incomplete. */
static inline size_t amqp_frame(const char *at, size_t length) {
    if (length < AMQP_OVERHEAD)
        return 0;
    size_t size = (size_t)amqp_number(at + 3, 4) + AMQP_OVERHEAD;
    if (size > AMQP_LONGEST)
        die("the broker sent what is no frame of AMQP");
    return size <= length ? size : 0;
}

/* Class and method of a method frame, as class << 16 | method; 0 for any other frame. */
static inline uint32_t amqp_method_of(const char *frame) {
    return frame[0] == AMQP_METHOD ? (uint32_t)amqp_number(frame + 7, 4) : 0;
}

static inline void amqp_send(int fd, const struct amqp_writer *w, const char *buffer) {
    if (send(fd, buffer, (size_t)(w->at - buffer), MSG_NOSIGNAL) != w->at - buffer)
        die("the broker took only a part of the handshake");
}

/* Wait for one method and return it; anything else ends the program. */
static inline const char *amqp_expect(int fd, uint32_t method) {
    static char frame[AMQP_LONGEST];
    size_t length = 0;
    while (length < AMQP_OVERHEAD || length < amqp_number(frame + 3, 4) + AMQP_OVERHEAD) {
        size_t wanted = length < 7 ? 7 : (size_t)amqp_number(frame + 3, 4) + AMQP_OVERHEAD;
        ssize_t got = recv(fd, frame + length, (wanted < sizeof frame ? wanted : sizeof frame) - length, 0);
        if (got <= 0)
            die("the broker closed the connection during the handshake");
        length += (size_t)got;
    }
    if (amqp_method_of(frame) != method)
        die("the broker answered with method %x instead of %x", amqp_method_of(frame), method);
    return frame;
}

/* Return a connected socket with channel 1 open for publishing with confirms; no heartbeats. */
static inline int amqp_connect(int port) {
    char buffer[512];
    struct amqp_writer w = {.at = buffer};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
        die("the broker cannot be reached: %s", strerror(errno));
    if (send(fd, "AMQP\0\0\x09\x01", 8, MSG_NOSIGNAL) != 8)
        die("the broker took nothing");
    amqp_expect(fd, AMQP_START);
    amqp_method(&w, 0, 10, 11);
    amqp_put(&w, 0, 4); /* no properties of ours */
    amqp_text(&w, "PLAIN", 1);
    amqp_put(&w, 12, 4);
    memcpy(w.at, "\0guest\0guest", 12);
    w.at += 12;
    amqp_text(&w, "en_US", 1);
    amqp_end(&w);
    amqp_send(fd, &w, buffer);
    const char *tune = amqp_expect(fd, AMQP_TUNE);
    w.at = buffer;
    amqp_method(&w, 0, 10, 31);
    memcpy(w.at, tune + 11, 6); /* the broker's own limits for channels and frames */
    w.at += 6;
    amqp_put(&w, 0, 2);
    amqp_end(&w);
    amqp_method(&w, 0, 10, 40);
    amqp_text(&w, "/", 1);
    amqp_put(&w, 0, 2);
    amqp_end(&w);
    amqp_send(fd, &w, buffer);
    amqp_expect(fd, 10 << 16 | 41);
    w.at = buffer;
    amqp_method(&w, AMQP_CHANNEL, 20, 10);
    amqp_put(&w, 0, 1);
    amqp_end(&w);
    amqp_send(fd, &w, buffer);
    amqp_expect(fd, 20 << 16 | 11);
    w.at = buffer;
    amqp_method(&w, AMQP_CHANNEL, 85, 10);
    amqp_put(&w, 0, 1);
    amqp_end(&w);
    amqp_send(fd, &w, buffer);
    amqp_expect(fd, 85 << 16 | 11);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

/* Write one message of JSON, `size` bytes that fit a frame, to an exchange; return where its body begins. */
static inline char *amqp_publication(struct amqp_writer *w, const char *exchange, const char *key, const char *data,
                                     size_t size) {
    amqp_method(w, AMQP_CHANNEL, 60, 40);
    amqp_put(w, 0, 2);
    amqp_text(w, exchange, 1);
    amqp_text(w, key, 1);
    amqp_put(w, 0, 1);
    amqp_end(w);
    amqp_begin(w, AMQP_HEADER, AMQP_CHANNEL);
    amqp_put(w, 60, 2);
    amqp_put(w, 0, 2);
    amqp_put(w, size, 8);
    amqp_put(w, 1 << 15 | 1 << 12, 2); /* content_type and delivery_mode, as any client library sets them */
    amqp_text(w, "application/json", 1);
    amqp_put(w, 2, 1);
    amqp_end(w);
    amqp_begin(w, AMQP_BODY, AMQP_CHANNEL);
    char *body = w->at;
    memcpy(w->at, data, size);
    w->at += size;
    amqp_end(w);
    return body;
}

#endif
