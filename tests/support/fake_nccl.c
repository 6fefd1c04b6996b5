/* A libnccl.so.2 without GPUs: the calls that pd_connector.net.libnccl makes, between two ranks in one process or two, over a UNIX socket.
 *
 * As NCCL's non-blocking communicators do, a call returns before it is over. Operations of one stream run in order, and `fake_nccl_is_over`
 * says whether they are complete, as a CUDA event would. A rank whose peer dies in mid-transfer waits until it is aborted: NCCL's kernels do,
 * where the peers share a node. Both ranks must name the same sizes in the same order, or the receiver reports an error.
 *
 * gcc -shared -fPIC -Wl,-soname,libnccl.so.2 -o libnccl.so.2 fake_nccl.c -lpthread
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION 22809
#endif
#define SUCCESS 0
#define SYSTEM_ERROR 2
#define INVALID_ARGUMENT 4
#define INVALID_USAGE 5
#define REMOTE_ERROR 6
#define IN_PROGRESS 7
#define OPERATIONS 256
#define STREAMS 4096

/* What goes wrong, for each rank; `fake_nccl_fault` sets it, or FAKE_NCCL_FAULT for both ranks of this process. */
enum { NONE, NEVER_JOINS, ERROR_AT_JOIN, ERROR_LATER, NEVER_MOVES, SLOW, LATE };

typedef struct { char internal[128]; } Id;
typedef struct { size_t size; unsigned magic, version; int blocking, cga, least, most; const char *net; } Config;
typedef struct { void *address; size_t size; int sends; uintptr_t stream; } Operation;
typedef struct {
    int rank, sock, count;
    atomic_int state, ends, work;
    char name[64];
    pthread_t thread;
    Operation operations[OPERATIONS];
} Communicator;

static atomic_int faults[2], ids, aborted, alive, receiving;
static atomic_long begun[STREAMS], over[STREAMS];
static __thread Communicator *group;
static __thread int depth;

void fake_nccl_fault(int rank, int fault) { faults[rank] = fault; }
long fake_nccl_aborted(void) { return aborted; }
long fake_nccl_alive(void) { return alive; }
/* Receives of KV, not of the first bytes, that wait for their sender now. */
long fake_nccl_receiving(void) { return receiving; }
long fake_nccl_begun(uintptr_t stream) { return begun[stream % STREAMS]; }
int fake_nccl_is_over(uintptr_t stream, long mark) { return over[stream % STREAMS] >= mark; }

static int fault_of(Communicator *it) {
    const char *said = getenv("FAKE_NCCL_FAULT");
    return faults[it->rank] ? faults[it->rank] : said ? atoi(said) : NONE;
}

int ncclGetVersion(int *version) { *version = VERSION; return SUCCESS; }
const char *ncclGetErrorString(int code) { return code == REMOTE_ERROR ? "remote process exited" : code == IN_PROGRESS ? "in progress" : "an error"; }
const char *ncclGetLastError(void *it) { (void)it; return ""; }

int ncclGetUniqueId(Id *id) {
    memset(id, 0, sizeof *id);
    snprintf(id->internal, 64, "pd-fake-nccl-%d-%d", getpid(), ++ids);
    return SUCCESS;
}

static int sleep_or_end(Communicator *it, int ms) {
    for (; ms > 0 && !it->ends; ms--) usleep(1000);
    return !it->ends;
}

/* The first rank listens, the second connects, each until the communicator is aborted. */
static int meet(Communicator *it) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = offsetof(struct sockaddr_un, sun_path) + 1 + strlen(it->name);
    strncpy(address.sun_path + 1, it->name, sizeof address.sun_path - 2);
    int sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (it->rank == 0) {
        if (bind(sock, (void *)&address, length) || listen(sock, 1)) return close(sock), -1;
        struct pollfd waiting = {sock, POLLIN, 0};
        while (!it->ends && poll(&waiting, 1, 1) == 0) {}
        int found = it->ends ? -1 : accept4(sock, NULL, NULL, SOCK_CLOEXEC);
        close(sock);
        return found;
    }
    while (connect(sock, (void *)&address, length))
        if (!sleep_or_end(it, 1)) return close(sock), -1;
    return sock;
}

/* 0 once all bytes have moved, -1 when aborted. */
static int move(Communicator *it, int sends, char *data, size_t size) {
    while (size && !it->ends) {
        struct pollfd waiting = {it->sock, sends ? POLLOUT : POLLIN, 0};
        if (poll(&waiting, 1, 1) == 0) continue;
        ssize_t done = sends ? send(it->sock, data, size, MSG_NOSIGNAL | MSG_DONTWAIT) : recv(it->sock, data, size, MSG_DONTWAIT);
        if (done > 0) { data += done; size -= done; }
        else usleep(1000); /* the peer is gone: a kernel would spin */
    }
    return size ? -1 : 0;
}

static void run(Communicator *it) {
    for (int i = 0; i < it->count; i++) {
        Operation *one = &it->operations[i];
        size_t size = one->size;
        int fault = fault_of(it);
        if (fault == ERROR_LATER && one->size != 4096) { it->state = REMOTE_ERROR; while (sleep_or_end(it, 1)) {} }
        if (fault == NEVER_MOVES && one->size != 4096) while (sleep_or_end(it, 1)) {}
        if (fault == SLOW) sleep_or_end(it, 200);
        int waits = !one->sends && size != 4096;
        receiving += waits;
        if (move(it, one->sends, (char *)&size, sizeof size) == 0) {
            if (size != one->size) { it->state = INVALID_USAGE; while (sleep_or_end(it, 1)) {} }
            else move(it, one->sends, one->address, size);
        }
        receiving -= waits;
    }
    for (int i = 0; i < it->count; i++) over[it->operations[i].stream % STREAMS]++;
    it->count = 0;
}

static void *serve(void *pointer) {
    Communicator *it = pointer;
    int fault = fault_of(it);
    if (fault == NEVER_JOINS) while (sleep_or_end(it, 1)) {}
    if (fault == LATE) sleep_or_end(it, 2500);
    if (fault == ERROR_AT_JOIN) it->state = SYSTEM_ERROR;
    else if (!it->ends) {
        it->sock = meet(it);
        if (it->sock >= 0) it->state = SUCCESS;
    }
    while (!it->ends) {
        if (!it->work) { usleep(100); continue; }
        for (int i = 0; i < it->count; i++) begun[it->operations[i].stream % STREAMS]++;
        it->work = 0;
        it->state = SUCCESS; /* the operations are in their stream */
        run(it);
    }
    return NULL;
}

int ncclCommInitRankConfig(Communicator **found, int ranks, Id id, int rank, const Config *config) {
    if (config->size != sizeof(Config) || config->magic != 0xcafebeef || config->version != 21700) return INVALID_ARGUMENT;
    if (ranks != 2 || config->blocking != 0 || config->most < 1 || strncmp(id.internal, "pd-fake-nccl-", 13)) return INVALID_ARGUMENT;
    Communicator *it = *found = calloc(1, sizeof *it);
    it->rank = rank;
    it->sock = -1;
    it->state = IN_PROGRESS;
    memcpy(it->name, id.internal, sizeof it->name - 1);
    alive++;
    return pthread_create(&it->thread, NULL, serve, it) ? SYSTEM_ERROR : IN_PROGRESS;
}

int ncclCommGetAsyncError(Communicator *it, int *state) { *state = it->state; return SUCCESS; }

int ncclGroupStart(void) { depth++; return SUCCESS; }

static int add(Communicator *it, Operation operation, int peer) {
    if (depth != 1 || peer == it->rank || it->state != SUCCESS || it->work || it->count == OPERATIONS) return INVALID_USAGE;
    if (group && group != it) return INVALID_USAGE;
    group = it;
    it->operations[it->count++] = operation;
    return SUCCESS;
}

int ncclSend(void *address, size_t size, int type, int peer, Communicator *it, void *stream) {
    if (type != 1) return INVALID_ARGUMENT;
    return add(it, (Operation){address, size, 1, (uintptr_t)stream}, peer);
}

int ncclRecv(void *address, size_t size, int type, int peer, Communicator *it, void *stream) {
    if (type != 1) return INVALID_ARGUMENT;
    return add(it, (Operation){address, size, 0, (uintptr_t)stream}, peer);
}

int ncclGroupEnd(void) {
    Communicator *it = group;
    group = NULL;
    if (--depth || !it) return depth ? INVALID_USAGE : SUCCESS;
    it->state = IN_PROGRESS;
    it->work = 1;
    return IN_PROGRESS;
}

int ncclCommAbort(Communicator *it) {
    it->ends = 1;
    pthread_join(it->thread, NULL);
    if (it->sock >= 0) close(it->sock);
    free(it);
    aborted++;
    alive--;
    return SUCCESS;
}
