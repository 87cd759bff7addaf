/*
 * The load client: subscribers and publishers of a push gateway in one epoll loop, so that one core does it all.
 *
 *     load PORT SERVER_PID [TOKENS]
 *
 * With a file of tokens, one a line, subscribers say by them who they are.
 * It reads one command a line from standard input (`name key=value key=value`) and answers each with one line of
 * JSON. Commands:
 *
 *     open n= wire=ws|sse|ndjson topic= [query=] [topics=T each=E] [stall=1] [dense=1] [serial=1] [lead=0] [goal=P]
 *              [after=P] [flight=256]
 *              open n connections, at most `flight` handshakes at a time; answers when each got its first message.
 *              With topics=T, connection i subscribes to E of the T topics `t.000000`...; each topic gets n*E/T
 *              subscribers. A stalled connection never reads again. A dense one expects every position of the log,
 *              from the first it gets on, or from the one after `after`. A serial one expects the numbers of serial=1
 *              below, and takes `goal` and `after` as such.
 *     publish  [rate=R | rate=0 for flat out] array=A k=K lead=L fan=F data=D [count=N] [topic= | topics=T] [to=PORT]
 *              [amqp=PORT exchange=E] [serial=1]
 *              start publishing over K kept-alive connections, A events a request. Flat out means: the next request
 *              follows the 202, but at most L events are ahead of the slowest of their F deliveries (F=0: no lead).
 *              With to=, another replica is published to. With amqp=, a request is A plain messages to an exchange of
 *              the broker there, and its answer the confirms of all of them. With serial=1 events carry their number instead
 *              of the time.
 *              With spin=1 the client never sleeps meanwhile: waking it would be work for the server's core, which
 *              no client on the other side of a network causes.
 *     measure  seconds=   forget the counters, go on for so long, answer with what happened meanwhile
 *     report   answer with what happened since the window began
 *     halt     stop publishing (finish=1: once count= is reached); answers when every answer and every delivery
 *              (fan > 0) has come in
 *     caught   group=     answers when every connection of the group has reached its goal
 *     close    group=     reset the group's connections
 *     quit
 *
 * A command that is not done after `timeout=` seconds (default 30) is answered as it stands, with "late":true.
 *
 * A delivery is one event received and counted by one client. WebSocket messages are counted by hopping from frame
 * header to frame header, SSE and NDJSON by lines. Every event's position is compared with the one before on the
 * same connection. Its latency is the time since the moment the publisher wrote into `data`.
 */
#define _GNU_SOURCE
#include "amqp.h"
#include "common.h"

#include <signal.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>

#define MAX_GROUPS 16
#define MAX_PUBLISHERS 64
#define MAX_ARRAY 5000
#define ROOM (1 << 18)  /* bytes taken by one recv; an event longer than this is refused */
#define READY 512       /* connections served per turn of the loop */
#define STALLED_RECEIVE_BUFFER 65536
#define EDGE (EPOLLIN | EPOLLRDHUP | EPOLLET)
#define BACK_OFF (5 * SECOND / 1000)  /* wait after 429 or 503 */

enum kind { COMMANDS, SUBSCRIBER, PUBLISHER };
enum wire { WS, SSE, NDJSON };
enum state { CONNECTING, HEAD, WELCOME, LIVE, STALLED, GONE };

struct source {  /* what epoll gives back: the first member of everything that has a file descriptor */
    enum kind kind;
    int fd;
};

/* Latencies in ns, 128 buckets per power of two: within 0.8 % of the value. */
struct histogram {
    uint32_t counts[58 * 128];
    uint64_t count;
    int64_t max;
};

struct group {
    enum wire wire;
    int index, size, opened, started, failed, lost, caught;
    int flight, each, topics, data;
    bool stall, dense, serial, leads, used;
    int64_t goal, after, began, caught_at;
    uint64_t deliveries, bytes, reads, missing, disorder, unparsed, gaps, controls;
    char query[2048];
    char first_error[256];
    struct subscriber *members;
    struct histogram *latency;
};

struct subscriber {
    struct source source;
    struct group *group;
    enum state state;
    uint32_t carried;  /* bytes of an incomplete unit kept from the last read */
    char *carry;
    int64_t position, serial;
};

struct publisher {
    struct source source;
    bool busy, writing;
    int64_t started, resting_until;
    char *request;
    size_t unsent;
    char answer[4096];
    size_t answered;
    uint64_t published;     /* messages on a broker's channel before its last request, whose tags follow */
    int array, unconfirmed; /* messages of that request, and those not confirmed yet */
    bool confirmed[MAX_ARRAY];
};

struct publishing {
    bool active, spin, amqp, serial;
    int port;
    double interval;     /* ns between requests; 0 is flat out */
    int64_t due;
    bool blocked;        /* the due request waits for a free connection: its events carry the time they were due */
    int array, k, lead, fan, topics;
    long count;          /* requests left; -1 is no end */
    int in_flight;       /* requests unanswered */
    size_t request_length;
    size_t first, stride, stamp_at, topic_at; /* where the first event begins, the next one, and in each of them */
    uint64_t sent, accepted, requests, refused, delivered_before;
    char first_error[512], cursor[64];
    int64_t cursor_position;
    uint32_t seed, turn;
    struct histogram latency;
};

struct command {
    char line[8192];
    char *name;
    char *keys[32], *values[32];
    int count;
    bool pending;
    int64_t due;
    struct group *group;
};

struct window {  /* where the counters stood when a measurement began */
    int64_t at, server_cpu, own_cpu;
    uint64_t sent, accepted, requests, refused, deliveries, bytes, reads, missing, disorder, unparsed, gaps, lost;
};

static int poller, port;
static clockid_t server_clock;
static bool has_server_clock;
static struct group groups[MAX_GROUPS];
static struct publisher publishers[MAX_PUBLISHERS];
static struct publishing pub;
static struct command command;
static struct window window;
static char room[ROOM + ROOM];

/* ---- counting ---- */

static void record(struct histogram *h, int64_t value) {
    if (value < 0)
        value = 0;
    unsigned index = (unsigned)value;
    if (value >= 128) {
        int shift = 56 - __builtin_clzll((uint64_t)value);
        index = (unsigned)((shift + 1) * 128) + (unsigned)((value >> shift) & 127);
    }
    h->counts[index]++;
    h->count++;
    if (value > h->max)
        h->max = value;
}

static int64_t quantile(const struct histogram *h, double share) {
    uint64_t rank = (uint64_t)((double)h->count * share), seen = 0;
    for (unsigned i = 0; i < sizeof h->counts / sizeof *h->counts; i++) {
        seen += h->counts[i];
        if (seen > rank)
            return i < 128 ? (int64_t)i : (int64_t)(128 + (i & 127)) << (i / 128 - 1);
    }
    return h->max;
}

static void merge(struct histogram *into, const struct histogram *from) {
    for (unsigned i = 0; i < sizeof into->counts / sizeof *into->counts; i++)
        into->counts[i] += from->counts[i];
    into->count += from->count;
    if (from->max > into->max)
        into->max = from->max;
}

static struct window totals(void) {
    struct window w = {.at = now_ns(), .own_cpu = clock_ns(CLOCK_PROCESS_CPUTIME_ID)};
    w.server_cpu = has_server_clock ? clock_ns(server_clock) : 0;
    w.sent = pub.sent, w.accepted = pub.accepted, w.requests = pub.requests, w.refused = pub.refused;
    for (int i = 0; i < MAX_GROUPS; i++) {
        struct group *g = &groups[i];
        w.deliveries += g->deliveries, w.bytes += g->bytes, w.reads += g->reads, w.missing += g->missing;
        w.disorder += g->disorder, w.unparsed += g->unparsed, w.gaps += g->gaps, w.lost += (uint64_t)g->lost;
    }
    return w;
}

/* Deliveries that count for the publisher's lead. */
static uint64_t led_deliveries(void) {
    uint64_t sum = 0;
    for (int i = 0; i < MAX_GROUPS; i++)
        sum += groups[i].leads ? groups[i].deliveries : 0;
    return sum;
}

/* ---- what a client receives ---- */

static void watch(struct source *source, uint32_t events, bool again) {
    struct epoll_event e = {.events = events, .data.ptr = source};
    if (epoll_ctl(poller, again ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, source->fd, &e) != 0)
        die("epoll_ctl: %s", strerror(errno));
}

static void lose(struct subscriber *s, const char *why) {
    struct group *g = s->group;
    if (s->state == GONE)
        return;
    if (s->state == LIVE || s->state == STALLED)
        g->lost++;
    else
        g->failed++;
    if (g->first_error[0] == 0)
        snprintf(g->first_error, sizeof g->first_error, "%s", why);
    close(s->source.fd);
    free(s->carry);
    s->carry = NULL;
    s->carried = 0;
    s->state = GONE;
}

static void welcome(struct subscriber *s) {
    if (s->state != WELCOME)
        return;
    s->group->opened++;
    s->state = LIVE;
    if (s->group->stall) {
        s->state = STALLED;
        watch(&s->source, 0, true);
    }
}

/* Digits of the position in `{"cursor":"epoch6-POSITION-tag"`; -1 if this is not its shape. */
static int64_t position_of(const char *payload) {
    const char *at = payload + 18;
    int64_t value = 0;
    if (at[-1] != '-')
        return -1;
    for (; *at >= '0' && *at <= '9'; at++)
        value = value * 10 + (*at - '0');
    return *at == '-' ? value : -1;
}

/* A member went on from one place to another, perhaps past the goal. */
static void approach(struct group *g, int64_t from, int64_t to) {
    if (g->goal != 0 && to >= g->goal && from < g->goal && ++g->caught == g->size)
        g->caught_at = now_ns();
}

static void follow(struct subscriber *s, struct group *g, int64_t position) {
    if (position <= s->position)
        g->disorder++;
    else if (g->dense && s->position != 0 && position != s->position + 1)
        g->missing += (uint64_t)(position - s->position - 1);
    if (!g->serial)
        approach(g, s->position, position);
    s->position = position;
}

static void follow_serial(struct subscriber *s, struct group *g, int64_t serial) {
    if (serial <= s->serial)
        g->disorder++;
    else
        g->missing += (uint64_t)(serial - s->serial - 1);
    approach(g, s->serial, serial);
    s->serial = serial;
}

/* One event: `{"cursor":"...",...,"data":"T<19 digits>xxx"}`; its data, of known length, is its last member. */
static void event(struct subscriber *s, const char *payload, size_t length, int64_t now) {
    struct group *g = s->group;
    int64_t position = length > 40 ? position_of(payload) : -1;
    g->deliveries++;
    if (position < 0)
        g->unparsed++;
    else
        follow(s, g, position);
    const char *data = payload + length - 1 - g->data;
    if (length < (size_t)g->data + 20 || memcmp(data - 1, ":\"T", 3) != 0)
        return;
    int64_t stamp = 0;
    for (const char *at = data + 2; *at >= '0' && *at <= '9'; at++)
        stamp = stamp * 10 + (*at - '0');
    if (g->serial)
        follow_serial(s, g, stamp);
    else
        record(g->latency, now - stamp);
}

/* A control message of WebSocket or NDJSON, or a heartbeat. */
static void control(struct subscriber *s, const char *payload, size_t length) {
    s->group->controls++;
    if (memmem(payload, length, "\"gap\"", 5) != NULL)
        s->group->gaps++;
}

static void message(struct subscriber *s, const char *payload, size_t length, int64_t now) {
    if (length > 11 && memcmp(payload, "{\"cursor\":\"", 11) == 0)
        event(s, payload, length, now);
    else
        control(s, payload, length);
}

static void answer_ping(struct subscriber *s, const char *payload, size_t length) {
    char pong[6 + 125] = {(char)0x8a, (char)(0x80 | length)};  /* masked with zeroes: the payload as it is */
    memcpy(pong + 6, payload, length);
    if (send(s->source.fd, pong, 6 + length, MSG_NOSIGNAL) != (ssize_t)(6 + length))
        lose(s, "could not send a pong");
}

static void closed_frame(struct subscriber *s, const char *payload, size_t length) {
    char why[160];
    int code = length >= 2 ? (uint8_t)payload[0] << 8 | (uint8_t)payload[1] : 1005;
    snprintf(why, sizeof why, "closed by the server: %d %.*s", code, length > 2 ? (int)length - 2 : 0, payload + 2);
    lose(s, why);
}

/* Hop from frame to frame; returns the bytes of complete frames. */
static size_t hop_frames(struct subscriber *s, const char *at, size_t length, int64_t now) {
    size_t done = 0;
    while (length - done >= 2 && s->state != GONE) {
        const uint8_t *h = (const uint8_t *)at + done;
        size_t head = 2, size = h[1] & 127;
        if (size == 126) {
            if (length - done < 4)
                break;
            size = (size_t)h[2] << 8 | h[3], head = 4;
        } else if (size == 127) {
            if (length - done < 10)
                break;
            size = (size_t)h[6] << 24 | (size_t)h[7] << 16 | (size_t)h[8] << 8 | h[9], head = 10;
        }
        if (length - done < head + size)
            break;
        const char *payload = at + done + head;
        done += head + size;
        if (h[0] == 0x81)
            message(s, payload, size, now);
        else if (h[0] == 0x89)
            answer_ping(s, payload, size);
        else if (h[0] == 0x88)
            closed_frame(s, payload, size);
        else
            s->group->unparsed++;
        welcome(s);
    }
    return done;
}

/* Step from line to line; SSE fields, NDJSON lines and chunk sizes alike. Returns the bytes of complete lines. */
static size_t step_lines(struct subscriber *s, const char *at, size_t length, int64_t now) {
    size_t done = 0;
    while (done < length && s->state != GONE) {
        const char *line = at + done;
        const char *end = memchr(line, '\n', length - done);
        if (end == NULL)
            break;
        size_t size = (size_t)(end - line);
        done += size + 1;
        if (size > 6 && memcmp(line, "data: {", 7) == 0)
            message(s, line + 6, size - 6, now);
        else if (line[0] == '{')
            message(s, line, size, now);
        else if (size > 6 && memcmp(line, "event:", 6) == 0)
            s->group->gaps += memmem(line, size, "gap", 3) != NULL;
        /* SSE opens with a block, NDJSON with a line. */
        if (line[0] == '{' || (size > 3 && memcmp(line, "id:", 3) == 0))
            welcome(s);
    }
    return done;
}

static size_t take_head(struct subscriber *s, const char *at, size_t length) {
    size_t head = head_length(at, length);
    if (head == 0)
        return 0;
    const char *expected = s->group->wire == WS ? "HTTP/1.1 101" : "HTTP/1.1 200";
    bool fine = memcmp(at, expected, 12) == 0;
    if (fine && s->group->wire == WS)
        fine = memmem(at, head, WS_ACCEPT, strlen(WS_ACCEPT)) != NULL;
    if (!fine) {
        char why[240];
        snprintf(why, sizeof why, "handshake refused: %.*s", (int)(length < 200 ? length : 200), at);
        lose(s, why);
        return length;
    }
    s->state = WELCOME;
    return head;
}

static size_t consume(struct subscriber *s, const char *at, size_t length, int64_t now) {
    size_t done = 0;
    if (s->state == HEAD)
        done = take_head(s, at, length);
    if (s->state != WELCOME && s->state != LIVE)
        return done;
    if (s->group->wire == WS)
        return done + hop_frames(s, at + done, length - done, now);
    return done + step_lines(s, at + done, length - done, now);
}

static void keep(struct subscriber *s, const char *rest, size_t length) {
    if (length > ROOM)
        die("a unit of more than %d bytes", ROOM);
    s->carried = (uint32_t)length;
    if (length == 0)
        return;
    s->carry = need(realloc(s->carry, length));
    memcpy(s->carry, rest, length);
}

/* Take what one recv gives; true if there may be more. */
static bool receive(struct subscriber *s) {
    size_t before = s->carried;
    if (before > 0)
        memcpy(room, s->carry, before);
    ssize_t got = recv(s->source.fd, room + before, ROOM, 0);
    if (got < 0 && errno == EAGAIN)
        return false;
    if (got <= 0) {
        lose(s, got == 0 ? "closed by the server" : strerror(errno));
        return false;
    }
    s->group->bytes += (uint64_t)got;
    s->group->reads++;
    size_t length = before + (size_t)got;
    size_t done = consume(s, room, length, now_ns());
    if (s->state != GONE && (before > 0 || done < length))
        keep(s, room + done, length - done);
    return got == ROOM && s->state != GONE;
}

/* ---- opening and closing ---- */

static int connect_socket(int port, bool small) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0)
        die("socket: %s", strerror(errno));
    int size = STALLED_RECEIVE_BUFFER;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (small)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    struct linger linger = {.l_onoff = 1, .l_linger = 0};  /* a reset leaves no TIME_WAIT behind: ports stay free */
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) != 0 && errno != EINPROGRESS) {
        close(fd);
        return -1;
    }
    return fd;
}

/* The topics of member `i`: each topic of a spread group is subscribed by size * each / topics members. */
static size_t add_topics(const struct group *g, int i, char *at, size_t space) {
    size_t length = (size_t)snprintf(at, space, "%s", g->query);
    for (int j = 0; j < g->each; j++) {
        long topic = ((long)i * g->each + j) % g->topics;
        length += (size_t)snprintf(at + length, space - length, "%stopic=t.%06ld", length > 0 ? "&" : "", topic);
    }
    return length;
}

/* Tokens, one a line in a file: member `i` says who it is by the i-th, and begins again behind the last. */
static char **tokens;
static int token_count;

static void read_tokens(const char *path) {
    static char line[4096];
    FILE *file = fopen(path, "r");
    if (file == NULL)
        die("%s: %s", path, strerror(errno));
    while (fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = 0;
        tokens = realloc(tokens, (size_t)(token_count + 1) * sizeof *tokens);
        if (tokens == NULL || (tokens[token_count++] = strdup(line)) == NULL)
            die("no memory for the tokens");
    }
    fclose(file);
}

static void shake_hands(struct subscriber *s) {
    static char request[65536];
    struct group *g = s->group;
    static const char *accept[] = {
        [WS] = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " WS_KEY,
        [SSE] = "Accept: text/event-stream",
        [NDJSON] = "Accept: application/x-ndjson",
    };
    size_t n = (size_t)sprintf(request, "GET /v1/events?");
    n += add_topics(g, (int)(s - g->members), request + n, 60000);
    n += (size_t)sprintf(request + n, " HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n%s\r\n", port, accept[g->wire]);
    if (token_count > 0)
        n += (size_t)sprintf(request + n, "Authorization: Bearer %s\r\n", tokens[(s - g->members) % token_count]);
    n += (size_t)sprintf(request + n, "\r\n");
    if (send(s->source.fd, request, n, MSG_NOSIGNAL) != (ssize_t)n) {
        lose(s, "the handshake could not be sent whole");
        return;
    }
    s->state = HEAD;
    watch(&s->source, EDGE, true);
}

static void open_more(struct group *g) {
    while (g->started < g->size && g->started - g->opened - g->failed < g->flight) {
        struct subscriber *s = &g->members[g->started++];
        s->source = (struct source){SUBSCRIBER, connect_socket(port, g->stall)};
        s->group = g;
        s->position = g->serial ? 0 : g->after;
        s->serial = g->after;
        if (s->source.fd < 0) {
            g->failed++;
            s->state = GONE;
            continue;
        }
        watch(&s->source, EPOLLOUT, false);
    }
}

static void subscriber_ready(struct subscriber *s, uint32_t events) {
    if (s->state == GONE)
        return;
    if (s->state == STALLED) {
        lose(s, "a stalled connection was ended by the server");
    } else if (s->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(s->source.fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error != 0)
            lose(s, strerror(error));
        else if (events & EPOLLOUT)
            shake_hands(s);
    } else {
        /* Edge-triggered, which spares epoll a second look: a short read has emptied the socket, unless it ended. */
        bool ended = events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
        while ((receive(s) || ended) && s->state < STALLED)
            ;
    }
}

static void close_group(struct group *g) {
    for (int i = 0; i < g->started; i++) {
        if (g->members[i].state != GONE)
            close(g->members[i].source.fd);
        free(g->members[i].carry);
    }
    free(g->members);
    free(g->latency);
    memset(g, 0, sizeof *g);
}

/* ---- publishing ---- */

/* New connections each time: a server may have closed the old ones for idleness. */
static void connect_publishers(const char *request) {
    for (int i = 0; i < pub.k; i++) {
        struct publisher *p = &publishers[i];
        if (p->source.fd != 0)
            close(p->source.fd);
        free(p->request);
        *p = (struct publisher){.source = {PUBLISHER, pub.amqp ? amqp_connect(pub.port) : connect_socket(pub.port, false)}};
        if (p->source.fd < 0)
            die("a publisher could not connect");
        p->request = need(malloc(pub.request_length));
        memcpy(p->request, request, pub.request_length);
        watch(&p->source, EPOLLIN, false);
    }
}

static void write_digits(char *at, int digits, uint64_t value) {
    for (int i = digits - 1; i >= 0; i--, value /= 10)
        at[i] = (char)('0' + value % 10);
}

/* JSON of `size` bytes that begins with a T and room for a time stamp. */
static char *build_data(int size) {
    char *data = need(malloc((size_t)size + 1));
    memset(data, 'x', (size_t)size);
    memcpy(data, "\"T0000000000000000000", 21);
    data[size - 1] = '"';
    data[size] = 0;
    return data;
}

/* Build the request once; before each sending only time stamps and topics are patched. */
static char *build_request(const char *topic, int size) {
    char item[70000], *data = build_data(size);
    int n = snprintf(item, sizeof item, "{\"topic\":\"%s\",\"data\":%s}", topic, data);
    free(data);
    pub.topic_at = strlen("{\"topic\":\"t.");
    pub.stamp_at = (size_t)(strstr(item, "\"T0") - item) + 2;
    pub.stride = (size_t)n + 1;
    size_t body = pub.array == 1 ? (size_t)n : (size_t)pub.array * pub.stride + 1;
    char *request = need(malloc(body + 512));
    size_t head = (size_t)sprintf(request, "POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                                  "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n", pub.port, body);
    char *at = request + head;
    pub.first = head + (pub.array > 1);
    pub.request_length = head + body;
    if (pub.array == 1) {
        memcpy(at, item, (size_t)n);
        return request;
    }
    for (int i = 0; i < pub.array; i++) {
        *at++ = i == 0 ? '[' : ',';
        memcpy(at, item, (size_t)n);
        at += n;
    }
    *at = ']';
    return request;
}

/* The same for a broker: as many messages. */
static char *build_messages(const char *exchange, const char *topic, int size) {
    char *data = build_data(size), *request = need(malloc((size_t)pub.array * ((size_t)size + 1024)));
    struct amqp_writer w = {.at = request};
    for (int i = 0; i < pub.array; i++) {
        char *message = w.at, *body = amqp_publication(&w, exchange, topic, data, (size_t)size);
        pub.stride = (size_t)(w.at - message);
        pub.stamp_at = (size_t)(body - message) + 2;
    }
    free(data);
    pub.first = 0;
    pub.topic_at = 7 + 4 + 2 + 1 + strlen(exchange) + 1 + 2;
    pub.request_length = (size_t)(w.at - request);
    return request;
}

static void stamp(char *request, int64_t at) {
    char digits[19];
    write_digits(digits, 19, (uint64_t)at);
    for (int i = 0; i < pub.array; i++) {
        char *item = request + pub.first + (size_t)i * pub.stride;
        memcpy(item + pub.stamp_at, digits, 19);
        if (pub.serial)
            write_digits(item + pub.stamp_at, 19, pub.sent + (uint64_t)i + 1);
        if (pub.topics > 0) {
            pub.seed = pub.seed * 1664525 + 1013904223;
            write_digits(item + pub.topic_at, 6, (uint64_t)pub.seed * (uint64_t)pub.topics >> 32);
        }
    }
}

static void send_rest(struct publisher *p) {
    ssize_t sent = send(p->source.fd, p->request + pub.request_length - p->unsent, p->unsent, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN)
        die("a publisher's connection broke: %s", strerror(errno));
    p->unsent -= sent > 0 ? (size_t)sent : 0;
    if (p->writing != (p->unsent > 0))
        watch(&p->source, p->writing ? EPOLLIN : EPOLLIN | EPOLLOUT, true);
    p->writing = p->unsent > 0;
}

static void await_confirms(struct publisher *p) {
    p->published += (uint64_t)p->array;
    p->unconfirmed = p->array = pub.array;
    memset(p->confirmed, 0, sizeof p->confirmed);
}

static void publish_one(struct publisher *p, int64_t now) {
    stamp(p->request, pub.blocked ? pub.due : now);
    p->busy = true;
    p->started = now;
    p->answered = 0;
    if (pub.amqp)
        await_confirms(p);
    p->unsent = pub.request_length;
    pub.in_flight++;
    pub.requests++;
    pub.sent += (uint64_t)pub.array;
    if (pub.count > 0)
        pub.count--;
    send_rest(p);
}

static bool within_lead(void) {
    if (pub.fan == 0 || pub.interval > 0)
        return true;
    uint64_t arrived = (led_deliveries() - pub.delivered_before) / (uint64_t)pub.fan;
    return pub.sent + (uint64_t)pub.array <= arrived + (uint64_t)pub.lead;
}

static struct publisher *free_publisher(int64_t now) {
    if (pub.in_flight == pub.k)
        return NULL;
    for (int i = 0; i < pub.k; i++) {
        struct publisher *p = &publishers[pub.turn++ % (unsigned)pub.k];  /* in turn, so that none idles */
        if (!p->busy && p->source.fd != 0 && p->resting_until <= now)
            return p;
    }
    return NULL;
}

static void publish_due(int64_t now) {
    while (pub.active && pub.count != 0 && (pub.interval == 0 || pub.due <= now) && within_lead()) {
        struct publisher *p = free_publisher(now);
        if (p == NULL) {
            pub.blocked = pub.interval > 0;
            return;
        }
        publish_one(p, now);
        pub.due += (int64_t)pub.interval;
        pub.blocked = false;
    }
    if (pub.count == 0)
        pub.active = false;
}

static void note_cursor(const char *answer) {
    const char *at = strstr(answer, "\"cursor\":\"");
    if (at == NULL)
        return;
    at += 10;
    int64_t position = strlen(at) > 8 ? strtoll(at + 7, NULL, 10) : 0;
    if (position < pub.cursor_position)
        return;
    pub.cursor_position = position;
    snprintf(pub.cursor, sizeof pub.cursor, "%.*s", (int)strcspn(at, "\""), at);
}

static void free_again(struct publisher *p, int64_t now) {
    p->busy = false;
    pub.in_flight--;
    record(&pub.latency, now - p->started);
}

static void answered(struct publisher *p, int64_t now) {
    p->answer[p->answered] = 0;
    free_again(p, now);
    if (memcmp(p->answer, "HTTP/1.1 202", 12) == 0) {
        pub.accepted += (uint64_t)pub.array;
        note_cursor(p->answer);
        return;
    }
    pub.refused++;
    pub.sent -= (uint64_t)pub.array;
    p->resting_until = now + BACK_OFF;
    if (pub.first_error[0] == 0)
        snprintf(pub.first_error, sizeof pub.first_error, "%.500s", p->answer);
}

/* One message of the last request is in the stream, or all up to it. */
static void confirm(struct publisher *p, uint64_t tag, bool multiple) {
    int index = (int)(tag - p->published) - 1;
    if (index < 0 || index >= pub.array)
        die("the broker confirmed a message that is not on the way");
    for (int i = multiple ? 0 : index; i <= index; i++) {
        p->unconfirmed -= !p->confirmed[i];
        p->confirmed[i] = true;
    }
}

/* Take what the broker says frame by frame; the rest stays for the next time. */
static void take_confirms(struct publisher *p) {
    size_t done = 0, size;
    while ((size = amqp_frame(p->answer + done, p->answered - done)) > 0) {
        const char *frame = p->answer + done;
        uint32_t method = amqp_method_of(frame);
        if (method != AMQP_ACK)
            die("the broker says %x instead of a confirm: %.*s", method, (int)frame[13], frame + 14);
        confirm(p, amqp_number(frame + 11, 8), frame[19] & 1);
        done += size;
    }
    p->answered -= done;
    memmove(p->answer, p->answer + done, p->answered);
    if (p->busy && p->unconfirmed == 0) {
        pub.accepted += (uint64_t)pub.array;
        free_again(p, now_ns());
    }
}

static void publisher_ready(struct publisher *p, uint32_t events) {
    if (events & EPOLLOUT && p->unsent > 0)
        send_rest(p);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return;
    ssize_t got = recv(p->source.fd, p->answer + p->answered, sizeof p->answer - 1 - p->answered, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0 && !p->busy) {  /* it timed out between two publishings; the next one connects anew */
        close(p->source.fd);
        p->source.fd = 0;
        return;
    }
    if (got <= 0)
        die("a publisher's connection was closed: %s", got == 0 ? "end of file" : strerror(errno));
    p->answered += (size_t)got;
    if (pub.amqp) {
        take_confirms(p);
        return;
    }
    size_t head = head_length(p->answer, p->answered);
    if (head > 0 && p->answered >= head + content_length(p->answer, head) && p->busy)
        answered(p, now_ns());
}

/* ---- commands ---- */

static const char *text(const char *key, const char *fallback) {
    for (int i = 0; i < command.count; i++)
        if (strcmp(command.keys[i], key) == 0)
            return command.values[i];
    return fallback;
}

static double number(const char *key, double fallback) {
    const char *value = text(key, NULL);
    return value == NULL ? fallback : strtod(value, NULL);
}

static int integer(const char *key, int fallback) {
    return (int)number(key, fallback);
}

static struct group *named_group(void) {
    int index = integer("group", -1);
    if (index < 0 || index >= MAX_GROUPS || !groups[index].used)
        die("no such group: %d", index);
    return &groups[index];
}

/* A quoted JSON string of what a server said: everything awkward becomes a space. */
static const char *quoted(const char *said) {
    static char out[640];
    size_t n = 0;
    out[n++] = '"';
    for (; *said != 0 && n < sizeof out - 2; said++)
        out[n++] = (char)(*said < 32 || *said == '"' || *said == '\\' || *said == 127 || *said < 0 ? ' ' : *said);
    out[n++] = '"';
    out[n] = 0;
    return out;
}

static void print_latency(const char *name, const struct histogram *h) {
    printf(",\"%s\":{\"count\":%lu,\"p50\":%ld,\"p99\":%ld,\"p999\":%ld,\"max\":%ld}", name, h->count,
           quantile(h, .5), quantile(h, .99), quantile(h, .999), h->max);
}

static const char *first_error(void) {
    for (int i = 0; i < MAX_GROUPS; i++)
        if (groups[i].first_error[0] != 0)
            return groups[i].first_error;
    return pub.first_error;
}

/* Answer the pending command with everything that happened in its window. */
static void reply(bool late) {
    static struct histogram all;
    memset(&all, 0, sizeof all);
    for (int i = 0; i < MAX_GROUPS; i++)
        if (groups[i].used && groups[i].leads)
            merge(&all, groups[i].latency);
    struct window w = totals();
    struct group *g = command.group;
    printf("{\"command\":\"%s\",\"late\":%s,\"seconds\":%.9f", command.name, late ? "true" : "false",
           (double)(w.at - window.at) / SECOND);
    printf(",\"server_cpu\":%.9f,\"own_cpu\":%.9f", (double)(w.server_cpu - window.server_cpu) / SECOND,
           (double)(w.own_cpu - window.own_cpu) / SECOND);
    printf(",\"sent\":%ld,\"accepted\":%lu,\"requests\":%lu,\"refused\":%lu", (long)(w.sent - window.sent),
           w.accepted - window.accepted, w.requests - window.requests, w.refused - window.refused);
    printf(",\"deliveries\":%lu,\"bytes\":%lu,\"reads\":%lu", w.deliveries - window.deliveries,
           w.bytes - window.bytes, w.reads - window.reads);
    printf(",\"missing\":%lu,\"disorder\":%lu,\"unparsed\":%lu,\"gaps\":%lu,\"lost\":%lu", w.missing - window.missing,
           w.disorder - window.disorder, w.unparsed - window.unparsed, w.gaps - window.gaps, w.lost - window.lost);
    if (g != NULL)
        printf(",\"group\":%d,\"opened\":%d,\"failed\":%d,\"caught\":%d,\"caught_after\":%.9f", g->index, g->opened,
               g->failed, g->caught, g->caught_at == 0 ? 0 : (double)(g->caught_at - g->began) / SECOND);
    int64_t owed = pub.fan > 0 ? (int64_t)(pub.sent * (uint64_t)pub.fan - (led_deliveries() - pub.delivered_before)) : 0;
    printf(",\"owed\":%ld,\"head\":%ld,\"cursor\":\"%s\"", owed, pub.cursor_position, pub.cursor);
    print_latency("latency", &all);
    print_latency("publish_latency", &pub.latency);
    printf(",\"error\":%s}\n", quoted(first_error()));
    fflush(stdout);
    command.pending = false;
}

static void begin_window(void) {
    for (int i = 0; i < MAX_GROUPS; i++)
        if (groups[i].used)
            memset(groups[i].latency, 0, sizeof *groups[i].latency);
    memset(&pub.latency, 0, sizeof pub.latency);
    window = totals();
}

static void run_open(void) {
    struct group *g = groups;
    while (g < groups + MAX_GROUPS && g->used)
        g++;
    if (g == groups + MAX_GROUPS)
        die("more than %d groups", MAX_GROUPS);
    const char *wire = text("wire", "ws"), *topic = text("topic", "bench");
    *g = (struct group){.used = true, .index = (int)(g - groups), .size = integer("n", 1), .began = now_ns()};
    g->wire = strcmp(wire, "ws") == 0 ? WS : strcmp(wire, "sse") == 0 ? SSE : NDJSON;
    g->stall = integer("stall", 0), g->dense = integer("dense", 0), g->leads = integer("lead", !g->stall);
    g->serial = integer("serial", 0);
    g->flight = integer("flight", 256);
    g->goal = (int64_t)number("goal", 0), g->after = (int64_t)number("after", 0);
    g->data = integer("data", 128);
    g->topics = integer("topics", 0), g->each = g->topics > 0 ? integer("each", 1) : 0;
    const char *query = text("query", "");
    snprintf(g->query, sizeof g->query, "%s%s%s%s", g->topics > 0 ? "" : "topic=", g->topics > 0 ? "" : topic,
             *query != 0 && g->topics == 0 ? "&" : "", query);
    g->members = need(calloc((size_t)g->size, sizeof *g->members));
    g->latency = need(calloc(1, sizeof *g->latency));
    command.group = g;
    begin_window();
    open_more(g);
}

static void run_publish(void) {
    if (pub.in_flight > 0)
        die("still publishing");
    pub.amqp = integer("amqp", 0) != 0, pub.port = pub.amqp ? integer("amqp", 0) : integer("to", port);
    pub.array = integer("array", 1), pub.k = integer("k", 1), pub.lead = integer("lead", 2);
    pub.fan = integer("fan", 0), pub.topics = integer("topics", 0), pub.spin = integer("spin", 0);
    pub.serial = integer("serial", 0);
    double rate = number("rate", 0), requests = number("count", -1);
    pub.count = (long)requests;
    pub.interval = rate > 0 ? (double)SECOND / rate : 0;
    if (pub.k > MAX_PUBLISHERS || pub.array > MAX_ARRAY || (rate == 0 && pub.lead < pub.array))
        die("at most %d publishers of %d events, and a lead of at least one request", MAX_PUBLISHERS, MAX_ARRAY);
    const char *topic = pub.topics > 0 ? "t.000000" : text("topic", "bench");
    int data = integer("data", 128);
    char *request = pub.amqp ? build_messages(text("exchange", "events"), topic, data) : build_request(topic, data);
    connect_publishers(request);
    free(request);
    pub.sent = pub.accepted = pub.requests = pub.refused = 0;
    pub.delivered_before = led_deliveries();
    pub.due = now_ns();
    pub.active = true;
    begin_window();
    reply(false);
}

static void run_command(void) {
    command.group = NULL;
    command.pending = true;
    command.due = now_ns() + (int64_t)(number("timeout", 30) * SECOND);
    if (strcmp(command.name, "open") == 0) {
        run_open();
    } else if (strcmp(command.name, "publish") == 0) {
        run_publish();
    } else if (strcmp(command.name, "measure") == 0) {
        command.due = now_ns() + (int64_t)(number("seconds", 1) * SECOND);
        begin_window();
    } else if (strcmp(command.name, "report") == 0) {
        reply(false);
    } else if (strcmp(command.name, "halt") == 0) {
        if (integer("finish", 0) == 0)
            pub.active = false;
    } else if (strcmp(command.name, "caught") == 0) {
        command.group = named_group();
    } else if (strcmp(command.name, "close") == 0) {
        close_group(named_group());
        reply(false);
    } else if (strcmp(command.name, "quit") == 0) {
        exit(0);
    } else {
        die("unknown command: %s", command.name);
    }
}

static bool all_delivered(void) {
    return pub.fan == 0 || led_deliveries() - pub.delivered_before >= pub.sent * (uint64_t)pub.fan;
}

/* Answer the pending command when what it waits for has happened, or its time is over. */
static void finish_command(int64_t now) {
    if (!command.pending)
        return;
    struct group *g = command.group;
    bool measuring = strcmp(command.name, "measure") == 0, done = false;
    if (strcmp(command.name, "open") == 0)
        done = g->opened + g->failed == g->size;
    else if (strcmp(command.name, "halt") == 0)
        done = !pub.active && pub.in_flight == 0 && all_delivered();
    else if (strcmp(command.name, "caught") == 0)
        done = g->caught == g->size;
    if (done || now >= command.due)
        reply(!done && !measuring);
}

static void parse_command(char *line) {
    command.count = 0;
    command.name = strtok(line, " ");
    if (command.name == NULL)
        die("an empty command");
    for (char *word = strtok(NULL, " "); word != NULL && command.count < 32; word = strtok(NULL, " ")) {
        char *equals = strchr(word, '=');
        if (equals == NULL)
            die("not key=value: %s", word);
        *equals = 0;
        command.keys[command.count] = word;
        command.values[command.count++] = equals + 1;
    }
    run_command();
}

/* One command at a time: the harness waits for the answer before it sends the next. */
static void commands_ready(void) {
    static size_t length;
    ssize_t got = read(0, command.line + length, sizeof command.line - 1 - length);
    if (got <= 0)
        exit(0);  /* the harness is gone */
    length += (size_t)got;
    char *end = memchr(command.line, '\n', length);
    if (end == NULL)
        return;
    *end = 0;
    length = 0;
    parse_command(command.line);
}

static void dispatch(struct source *source, uint32_t events) {
    if (source->kind == SUBSCRIBER)
        subscriber_ready((struct subscriber *)source, events);
    else
        publisher_ready((struct publisher *)source, events);
}

static struct timespec patience(int64_t now) {
    if (pub.active && pub.spin)
        return (struct timespec){0, 0};
    int64_t until = command.pending ? command.due : now + SECOND;
    if (pub.active && pub.interval > 0 && !pub.blocked && pub.due < until)
        until = pub.due;
    if (pub.active && pub.interval == 0 && pub.refused > 0 && now + BACK_OFF < until)
        until = now + BACK_OFF;
    int64_t left = until > now ? until - now : 0;
    return (struct timespec){left / SECOND, left % SECOND};
}

int main(int argc, char **argv) {
    static struct source commands = {COMMANDS, 0};
    static struct epoll_event ready[READY];
    if (argc != 3 && argc != 4)
        die("usage: load PORT SERVER_PID [TOKENS]");
    if (argc == 4)
        read_tokens(argv[3]);
    port = atoi(argv[1]);
    has_server_clock = clock_getcpuclockid(atoi(argv[2]), &server_clock) == 0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    poller = epoll_create1(EPOLL_CLOEXEC);
    fcntl(0, F_SETFL, O_NONBLOCK);
    watch(&commands, EPOLLIN, false);
    for (;;) {
        struct timespec wait = patience(now_ns());
        int n = epoll_pwait2(poller, ready, READY, &wait, NULL);
        if (n < 0 && errno != EINTR)
            die("epoll: %s", strerror(errno));
        bool commanded = false;
        for (int i = 0; i < n; i++)
            commanded |= ready[i].data.ptr == &commands;
        for (int i = 0; i < n; i++)
            if (ready[i].data.ptr != &commands)
                dispatch(ready[i].data.ptr, ready[i].events);
        if (commanded)  /* last, for a command may free what the events above belong to */
            commands_ready();
        for (int i = 0; i < MAX_GROUPS; i++)
            if (groups[i].used && groups[i].started < groups[i].size)
                open_more(&groups[i]);
        int64_t now = now_ns();
        publish_due(now);
        finish_command(now);
    }
}
