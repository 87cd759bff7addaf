/*
 * The floor: the least a server can do for the same deliveries. One epoll loop, one `send()` per connection and
 * request, nothing else: no log, no topics, no windows, no slow clients.
 *
 *     floor PORT BYTES [FILE]
 *
 * BYTES is the size on the wire of one delivery, so that both sides move the same amount. With FILE every request's
 * body is appended to it and made durable by `fdatasync` before the 202; requests that are ready together share one.
 * It understands exactly what the load client says, trusts it, and gives every event to every subscriber.
 */
#define _GNU_SOURCE
#include "common.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define READY 512
#define REQUEST_ROOM (1 << 22)

enum wire { WS, SSE, WIRES };

struct connection {  /* by file descriptor; `request` is freed once the connection only listens */
    char *request;
    size_t length, room;
    bool publishes;
};

static int poller, listener, file = -1;
static size_t delivery_bytes;
static struct connection *connections;
static int *subscribers[WIRES], subscriber_count[WIRES];
static int waiting[READY], waiting_count;
static uint64_t position;
static char *batch[WIRES];
static size_t batch_length[WIRES], batch_room;

static void send_all(int fd, const char *at, size_t length) {
    while (length > 0) {
        ssize_t sent = send(fd, at, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            struct pollfd wait = {.fd = fd, .events = POLLOUT};
            poll(&wait, 1, 1000);
            continue;
        }
        if (sent < 0)
            return;  /* it left; epoll says so as well */
        at += sent;
        length -= (size_t)sent;
    }
}

static void say(int fd, const char *text) {
    send_all(fd, text, strlen(text));
}

/* Append one event for one wire, padded in its id to the size that was asked for. */
static void add_event(enum wire wire, const char *data, int data_length) {
    static const char filler[] = "0000000000000000000000000000000000000000000000000000000000000000"
                                 "0000000000000000000000000000000000000000000000000000000000000000";
    char *at = batch[wire] + batch_length[wire];
    size_t head = wire == WS ? (delivery_bytes < 128 ? 2 : 4) : 0;
    char cursor[40];
    int n = snprintf(cursor, sizeof cursor, "floor0-%lu-0000", position);
    size_t fixed = head + (size_t)data_length + (size_t)n + strlen("{'cursor':'','topic':'bench','id':'',"
                   "'type':'message','time':'2026-01-01T00:00:00.000Z','data':}");
    if (wire == SSE)
        fixed += strlen("id: \ndata: \n\n") + (size_t)n;
    size_t pad = delivery_bytes > fixed ? delivery_bytes - fixed : 0;
    if (pad > sizeof filler - 1)
        pad = sizeof filler - 1;
    if (wire == SSE)
        at += sprintf(at, "id: %s\ndata: ", cursor);
    int length = sprintf(at + head, "{\"cursor\":\"%s\",\"topic\":\"bench\",\"id\":\"%.*s\",\"type\":\"message\","
                         "\"time\":\"2026-01-01T00:00:00.000Z\",\"data\":%.*s}", cursor, (int)pad, filler,
                         data_length, data);
    if (wire == WS && head == 2) {
        at[0] = (char)0x81, at[1] = (char)length;
    } else if (wire == WS) {
        at[0] = (char)0x81, at[1] = 126, at[2] = (char)(length >> 8), at[3] = (char)length;
    }
    at += head + (size_t)length;
    if (wire == SSE)
        *at++ = '\n', *at++ = '\n';
    batch_length[wire] = (size_t)(at - batch[wire]);
}

/* Encode the events of one request once per wire; returns how many there were. */
static int encode(const char *body, size_t length) {
    int events = 0;
    const char *at = body, *end = body + length;
    batch_length[WS] = batch_length[SSE] = 0;
    if (batch_room < 4 * length + 4096) {
        batch_room = 4 * length + 4096;
        for (int wire = 0; wire < WIRES; wire++)
            batch[wire] = need(realloc(batch[wire], batch_room));
    }
    while ((at = memmem(at, (size_t)(end - at), "\"data\":", 7)) != NULL) {
        const char *data = at + 7, *last = memchr(data + 1, '"', (size_t)(end - data - 1));
        position++;
        events++;
        for (int wire = 0; wire < WIRES; wire++)
            if (subscriber_count[wire] > 0)
                add_event((enum wire)wire, data, (int)(last - data) + 1);
        at = last;
    }
    return events;
}

static void deliver(void) {
    for (int wire = 0; wire < WIRES; wire++)
        for (int i = 0; i < subscriber_count[wire]; i++)
            send_all(subscribers[wire][i], batch[wire], batch_length[wire]);
}

/* All requests that were ready together: durable by one fdatasync, then delivered, then answered. */
static void publish_waiting(void) {
    if (file >= 0) {
        for (int i = 0; i < waiting_count; i++) {
            struct connection *c = &connections[waiting[i]];
            size_t head = head_length(c->request, c->length);
            if (write(file, c->request + head, c->length - head) < 0)
                die("write: %s", strerror(errno));
        }
        if (fdatasync(file) != 0)
            die("fdatasync: %s", strerror(errno));
    }
    for (int i = 0; i < waiting_count; i++) {
        struct connection *c = &connections[waiting[i]];
        size_t head = head_length(c->request, c->length);
        char answer[256], json[128];
        int events = encode(c->request + head, c->length - head);
        deliver();
        int n = snprintf(json, sizeof json, "{\"accepted\":%d,\"duplicates\":0,\"cursor\":\"floor0-%lu-0000\"}", events, position);
        snprintf(answer, sizeof answer, "HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n"
                 "Content-Type: application/json\r\n\r\n%s", n, json);
        c->length = 0;
        say(waiting[i], answer);
    }
    waiting_count = 0;
}

static void subscribe(int fd, enum wire wire) {
    if (wire == WS)
        say(fd, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Accept: " WS_ACCEPT "\r\n\r\n\x81\x45{\"control\":\"welcome\",\"connection\":\"0123456789\","
                "\"cursor\":\"floor0-0-0\"}");
    else
        say(fd, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n"
                "Connection: close\r\n\r\nretry: 2000\nid: floor0-0-0000\n\n");
    subscribers[wire][subscriber_count[wire]++] = fd;
}

static void leave(int fd) {
    for (int wire = 0; wire < WIRES; wire++)
        for (int i = 0; i < subscriber_count[wire]; i++)
            if (subscribers[wire][i] == fd)
                subscribers[wire][i] = subscribers[wire][--subscriber_count[wire]];
    free(connections[fd].request);
    connections[fd] = (struct connection){0};
    close(fd);
}

static void request_ready(int fd) {
    struct connection *c = &connections[fd];
    size_t head = head_length(c->request, c->length);
    if (head == 0)
        return;
    if (strncmp(c->request, "POST ", 5) == 0) {
        if (c->length >= head + content_length(c->request, head))
            waiting[waiting_count++] = fd;
        return;
    }
    if (memmem(c->request, head, "websocket", 9) != NULL)
        subscribe(fd, WS);
    else if (memmem(c->request, head, "text/event-stream", 17) != NULL)
        subscribe(fd, SSE);
    else
        say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    free(c->request);
    *c = (struct connection){0};
}

static void readable(int fd) {
    struct connection *c = &connections[fd];
    if (c->room - c->length < 1024) {
        c->room = c->room == 0 ? 2048 : 4 * c->room;
        if (c->room > REQUEST_ROOM)
            die("a request of more than %d bytes", REQUEST_ROOM);
        c->request = need(realloc(c->request, c->room));
    }
    ssize_t got = recv(fd, c->request + c->length, c->room - c->length, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            leave(fd);
        return;
    }
    c->length += (size_t)got;
    request_ready(fd);
}

static void accept_more(void) {
    int on = 1, fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
}

static void listen_on(int port) {
    int on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 4096) != 0)
        die("port %d: %s", port, strerror(errno));
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
}

int main(int argc, char **argv) {
    static struct epoll_event ready[READY];
    struct rlimit limit;
    if (argc != 3 && argc != 4)
        die("usage: floor PORT BYTES [FILE]");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    getrlimit(RLIMIT_NOFILE, &limit);
    connections = need(calloc(limit.rlim_cur, sizeof *connections));
    for (int wire = 0; wire < WIRES; wire++)
        subscribers[wire] = need(calloc(limit.rlim_cur, sizeof(int)));
    delivery_bytes = strtoul(argv[2], NULL, 10);
    if (argc == 4 && (file = open(argv[3], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) < 0)
        die("%s: %s", argv[3], strerror(errno));
    poller = epoll_create1(EPOLL_CLOEXEC);
    listen_on(atoi(argv[1]));
    for (;;) {
        int n = epoll_wait(poller, ready, READY, -1);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.fd == listener)
                accept_more();
            else
                readable(ready[i].data.fd);
        }
        if (waiting_count > 0)
            publish_waiting();
    }
}
