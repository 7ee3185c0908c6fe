/* A mock of an OpenAI-shaped server that is never the bottleneck: one thread, epoll, no allocation
 * per request beyond the connection's buffers.
 *
 *   mock_server PORT LATENCY_MS SIGMA SLOTS
 *
 * Every POST is answered with a chat completion whose text names the row it found in the prompt
 * ("row=<number>;"), LATENCY_MS later (median of a lognormal when SIGMA > 0). With SLOTS > 0 at
 * most so many requests are served at once and the others wait their turn. GET /stats tells how
 * often each row was asked, and how busy the slots were; GET /v1/models and /health answer 200.
 * It prints the port it listens on (PORT 0: any) and ends when its standard input does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_CONNECTIONS 16384
#define BUFFER_BYTES (1 << 16)
#define MAX_ROWS (1 << 24)

typedef struct {
    char *in;
    size_t filled;
    int open;
    uint32_t life; /* tells a reused descriptor from the one a reply was meant for */
} Connection;

typedef struct {
    double due;
    int fd;
    uint32_t life;
    int64_t row;
} Pending;

static Connection connections[MAX_CONNECTIONS];
static Pending *heap;
static size_t heap_size, heap_room;
static Pending *queue;
static size_t queue_head, queue_tail, queue_room;
static uint8_t *asked;
static int64_t requests, redone, rows_seen, serving, slots;
static double latency_s, sigma, busy_s, busy_since, full_s, first_at, last_at;
static double asked_at, busy_asked_s; /* when the last request came, and busy_s then */
static int poller;

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static double draw_latency(void) {
    if (sigma <= 0) return latency_s;
    double u = (random() + 1.0) / (RAND_MAX + 2.0), v = (random() + 1.0) / (RAND_MAX + 2.0);
    return latency_s * exp(sigma * sqrt(-2 * log(u)) * cos(2 * M_PI * v));
}

static void push(Pending item) {
    if (heap_size == heap_room) {
        heap_room = heap_room ? heap_room * 2 : 4096;
        heap = realloc(heap, heap_room * sizeof *heap);
    }
    size_t at = heap_size++;
    while (at && heap[(at - 1) / 2].due > item.due) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = item;
}

static Pending pop(void) {
    Pending top = heap[0], last = heap[--heap_size];
    size_t at = 0;
    for (;;) {
        size_t child = at * 2 + 1;
        if (child >= heap_size) break;
        if (child + 1 < heap_size && heap[child + 1].due < heap[child].due) child++;
        if (heap[child].due >= last.due) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

static void account(double now) {
    if (slots > 0) {
        busy_s += serving * (now - busy_since);
        if (serving == slots) full_s += now - busy_since;
    }
    busy_since = now;
}

static void send_all(int fd, const char *data, size_t length) {
    while (length) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent > 0) {
            data += sent;
            length -= (size_t)sent;
        } else if (errno == EAGAIN) {
            usleep(50);
        } else {
            return;
        }
    }
}

static void answer(int fd, int64_t row) {
    static char padding[256];
    if (!padding[0]) memset(padding, 'x', sizeof padding - 1);
    char body[1024], reply[1400];
    int length = snprintf(
        body, sizeof body,
        "{\"id\":\"c-%lld\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"mock\","
        "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
        "\"row=%lld; %s\"},\"finish_reason\":\"stop\"}],"
        "\"usage\":{\"prompt_tokens\":150,\"completion_tokens\":75,\"total_tokens\":225}}",
        (long long)row, (long long)row, padding);
    int whole = snprintf(reply, sizeof reply,
                         "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                         "x-smg-routed-worker-id: http://127.0.0.1:8000\r\n"
                         "content-length: %d\r\n\r\n%s",
                         length, body);
    send_all(fd, reply, (size_t)whole);
}

static void plain(int fd, const char *body) {
    char reply[1024];
    int whole = snprintf(reply, sizeof reply,
                         "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                         "content-length: %zu\r\n\r\n%s",
                         strlen(body), body);
    send_all(fd, reply, (size_t)whole);
}

static void stats(int fd) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    account(now_s());
    char body[512];
    snprintf(body, sizeof body,
             "{\"requests\":%lld,\"rows\":%lld,\"redone\":%lld,\"busy_s\":%.6f,\"full_s\":%.6f,"
             "\"asked_at\":%.6f,\"busy_asked_s\":%.6f,\"first_at\":%.6f,\"last_at\":%.6f,\"cpu_s\":%.6f}",
             (long long)requests, (long long)rows_seen, (long long)redone, busy_s, full_s,
             asked_at, busy_asked_s, first_at, last_at,
             used.ru_utime.tv_sec + used.ru_stime.tv_sec +
                 (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6);
    plain(fd, body);
}

static void begin(Pending item, double now) {
    account(now);
    serving++;
    item.due = now + draw_latency();
    push(item);
}

static void take(int fd, int64_t row) {
    double now = now_s();
    requests++;
    if (first_at == 0) first_at = now;
    account(now);
    asked_at = now;
    busy_asked_s = busy_s;
    if (row >= 0 && row < MAX_ROWS) {
        if (asked[row]) redone++;
        else rows_seen++;
        if (asked[row] < 255) asked[row]++;
    }
    if (latency_s <= 0) {
        last_at = now;
        answer(fd, row);
        return;
    }
    Pending item = {0, fd, connections[fd].life, row};
    if (slots > 0 && serving >= slots) {
        if (queue_tail - queue_head == queue_room) {
            size_t room = queue_room ? queue_room * 2 : 4096;
            Pending *larger = malloc(room * sizeof *larger);
            for (size_t at = queue_head; at < queue_tail; at++)
                larger[at % room] = queue[at % queue_room];
            free(queue);
            queue = larger;
            queue_room = room;
        }
        queue[queue_tail++ % queue_room] = item;
        return;
    }
    begin(item, now);
}

static void finish_due(void) {
    double now = now_s();
    while (heap_size && heap[0].due <= now) {
        Pending item = pop();
        account(now);
        serving--;
        last_at = now;
        if (connections[item.fd].open && connections[item.fd].life == item.life)
            answer(item.fd, item.row);
        while (queue_head < queue_tail && serving < slots)
            begin(queue[queue_head++ % queue_room], now);
    }
}

static void drop(int fd) {
    connections[fd].open = 0;
    connections[fd].filled = 0;
    close(fd);
}

/* Serve every whole request in the buffer. Returns 0 when the connection must go. */
static int serve(int fd) {
    Connection *connection = &connections[fd];
    size_t done = 0;
    for (;;) {
        char *start = connection->in + done;
        size_t left = connection->filled - done;
        char *end = memmem(start, left, "\r\n\r\n", 4);
        if (!end) break;
        size_t head = (size_t)(end - start) + 4, body = 0;
        for (char *line = start; line < end;) {
            if (!strncasecmp(line, "content-length:", 15)) body = strtoul(line + 15, NULL, 10);
            char *next = memmem(line, (size_t)(end - line) + 2, "\r\n", 2);
            line = next ? next + 2 : end;
        }
        if (head + body > BUFFER_BYTES) return 0;
        if (left < head + body) break;
        if (!strncmp(start, "GET /stats", 10)) stats(fd);
        else if (!strncmp(start, "GET ", 4))
            plain(fd, "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\"}]}");
        else {
            char *mark = memmem(end, body + 4, "row=", 4);
            take(fd, mark ? strtoll(mark + 4, NULL, 10) : -1);
        }
        done += head + body;
    }
    memmove(connection->in, connection->in + done, connection->filled - done);
    connection->filled -= done;
    return 1;
}

static void accept_all(int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_CONNECTIONS) {
            close(fd);
            continue;
        }
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (!connections[fd].in) connections[fd].in = malloc(BUFFER_BYTES);
        connections[fd].filled = 0;
        connections[fd].open = 1;
        connections[fd].life++;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

static void receive(int fd) {
    Connection *connection = &connections[fd];
    for (;;) {
        size_t room = BUFFER_BYTES - connection->filled;
        ssize_t got = room ? recv(fd, connection->in + connection->filled, room, 0) : 0;
        if (got > 0) {
            connection->filled += (size_t)got;
            if (!serve(fd)) break;
            if ((size_t)got < room) return;
        } else if (got < 0 && errno == EAGAIN) {
            return;
        } else {
            break;
        }
    }
    drop(fd);
}

int main(int count, char **words) {
    if (count != 5) {
        fprintf(stderr, "usage: mock_server PORT LATENCY_MS SIGMA SLOTS\n");
        return 2;
    }
    latency_s = atof(words[2]) / 1000;
    sigma = atof(words[3]);
    slots = atoll(words[4]);
    asked = calloc(MAX_ROWS, 1);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(words[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) {
        perror("bind");
        return 1;
    }
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = 0;
    epoll_ctl(poller, EPOLL_CTL_ADD, 0, &event);
    busy_since = now_s();
    for (;;) {
        int wait_ms = -1;
        if (heap_size) {
            double left = heap[0].due - now_s();
            wait_ms = left <= 0 ? 0 : (int)(left * 1000) + 1;
        }
        int ready = epoll_wait(poller, events, 512, wait_ms);
        for (int at = 0; at < ready; at++) {
            int fd = events[at].data.fd;
            char byte;
            if (fd == listener) accept_all(listener);
            else if (fd == 0) {
                if (read(0, &byte, 1) <= 0) return 0;
            } else receive(fd);
        }
        finish_due();
    }
}
