/*
 * The receiver of webhooks: takes requests on any number of connections, answers each 200 at once, and keeps an exact
 * account. One epoll loop.
 *
 *     catch PORT
 *
 * A request's path is /N, 0 <= N < 4096: the number of its endpoint. Its `webhook-id` has the event's position behind
 * the first '-'. Paths from 4000 on are taken and never answered (4000-4031) or answered 500 (from 4032 on).
 *
 * It reads one command a line from standard input and answers each with one line of JSON:
 *
 *     report   {"requests":…, "different":…, "bytes":…, "unsigned":…, "connections":…, "ns":<since the first request>,
 *              "p50":…, "p99":…}: since the last `reset`; latencies in ns, of requests that are answered 200 and whose
 *              data is `T<nanoseconds>…`
 *     reset    forget all of that but which events came
 */
#define _GNU_SOURCE
#include "common.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define READY 512
#define ROOM (1 << 21)
#define PATHS 4096
#define HANGING 4000
#define FAILING 4032
#define BUCKETS (58 * 128)

static const char OK[] = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
static const char NO[] = "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n";

struct connection {
    char *request;
    size_t length, room;
};

static struct connection *connections;
static int poller, listener;
static uint64_t requests, different, bytes, unsigned_requests, opened;
static int64_t first_ns, last_ns;
static uint8_t *seen[PATHS];  /* a bit for every position */
static size_t seen_room[PATHS];
static uint32_t latencies[BUCKETS];
static uint64_t latency_count;

/* 128 buckets per power of two, as in load.c. */
static int bucket_of(int64_t ns) {
    if (ns < 128)
        return ns < 0 ? 0 : (int)ns;
    int high = 63 - __builtin_clzll((uint64_t)ns);
    return (high - 6) * 128 + (int)((ns >> (high - 7)) & 127);
}

static int64_t value_of(int bucket) {
    if (bucket < 128)
        return bucket;
    return ((int64_t)(bucket & 127) + 128) << (bucket / 128 - 1);
}

static int64_t quantile(double q) {
    uint64_t below = 0, wanted = (uint64_t)(q * (double)latency_count);
    for (int b = 0; b < BUCKETS; b++)
        if ((below += latencies[b]) > wanted)
            return value_of(b);
    return 0;
}

static void mark(int path, uint64_t position) {
    size_t at = position / 8;
    if (at >= seen_room[path]) {
        size_t room = 2 * at + 4096;
        seen[path] = need(realloc(seen[path], room));
        memset(seen[path] + seen_room[path], 0, room - seen_room[path]);
        seen_room[path] = room;
    }
    uint8_t bit = (uint8_t)(1 << position % 8);
    if (!(seen[path][at] & bit))
        different++;
    seen[path][at] |= bit;
}

static void answer(int fd, const char *head, size_t head_size, const char *body, size_t body_size) {
    int path = atoi(head + strlen("POST /"));
    if (path < 0 || path >= PATHS)
        die("path %d", path);
    const char *id = memmem(head, head_size, "\r\nwebhook-id: ", 14);
    const char *dash = id == NULL ? NULL : strchr(id + 14, '-');
    if (dash == NULL)
        die("a request without an id");
    if (memmem(head, head_size, "\r\nwebhook-signature: v1", 23) == NULL)
        unsigned_requests++;
    last_ns = now_ns();
    if (requests == 0)
        first_ns = last_ns;
    requests++;
    bytes += head_size + body_size;
    mark(path, strtoull(dash + 1, NULL, 10));
    const char *sent = memmem(body, body_size, "\"data\":\"T", 9);
    if (sent != NULL && path < HANGING) {
        latencies[bucket_of(last_ns - strtoll(sent + 9, NULL, 10))]++;
        latency_count++;
    }
    if (path >= HANGING && path < FAILING)
        return;
    const char *text = path >= FAILING ? NO : OK;
    if (send(fd, text, strlen(text), MSG_NOSIGNAL) < 0 && errno != EPIPE && errno != ECONNRESET)
        die("send: %s", strerror(errno));
}

static void leave(int fd) {
    free(connections[fd].request);
    connections[fd] = (struct connection){0};
    close(fd);
}

static void readable(int fd) {
    struct connection *c = &connections[fd];
    if (c->room - c->length < 4096) {
        c->room = c->room == 0 ? 8192 : 4 * c->room;
        if (c->room > 4 * ROOM)
            die("a request of more than %d bytes", ROOM);
        c->request = need(realloc(c->request, c->room + 1));
    }
    ssize_t got = recv(fd, c->request + c->length, c->room - c->length, 0);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            leave(fd);
        return;
    }
    c->length += (size_t)got;
    c->request[c->length] = 0;
    size_t head;
    while ((head = head_length(c->request, c->length)) > 0) {
        size_t size = head + content_length(c->request, head);
        if (c->length < size)
            return;
        answer(fd, c->request, head, c->request + head, size - head);
        c->length -= size;
        memmove(c->request, c->request + size, c->length);
    }
}

static void accept_more(void) {
    int on = 1, fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
        opened++;
    }
}

static void command(void) {
    static char line[256];
    if (fgets(line, sizeof line, stdin) == NULL)
        exit(0);
    if (strncmp(line, "reset", 5) == 0) {
        requests = different = bytes = unsigned_requests = opened = latency_count = 0;
        memset(latencies, 0, sizeof latencies);
    }
    printf("{\"requests\":%lu,\"different\":%lu,\"bytes\":%lu,\"unsigned\":%lu,\"connections\":%lu,\"ns\":%ld,"
           "\"p50\":%ld,\"p99\":%ld}\n", requests, different, bytes, unsigned_requests, opened,
           requests == 0 ? 0 : last_ns - first_ns, quantile(0.5), quantile(0.99));
    fflush(stdout);
}

int main(int argc, char **argv) {
    static struct epoll_event ready[READY];
    struct rlimit limit;
    int on = 1;
    if (argc != 2)
        die("usage: catch PORT");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setvbuf(stdin, NULL, _IONBF, 0);
    getrlimit(RLIMIT_NOFILE, &limit);
    connections = need(calloc(limit.rlim_cur, sizeof *connections));
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 4096) != 0)
        die("port %s: %s", argv[1], strerror(errno));
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    e.data.fd = STDIN_FILENO;
    epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &e);
    for (;;) {
        int n = epoll_wait(poller, ready, READY, -1);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.fd == listener)
                accept_more();
            else if (ready[i].data.fd == STDIN_FILENO)
                command();
            else
                readable(ready[i].data.fd);
        }
    }
}
