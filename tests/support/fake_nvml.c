/* A libnvidia-ml.so.1 without a GPU, for tests that go through the real pynvml.
 *
 * Board g draws busy_w(g) for half a period and idle_w(g) for the other half of CLOCK_MONOTONIC, so the energy up to any moment has
 * a closed form and needs no state. What a board tells is what real boards were seen to tell: values change every UPDATE_S
 * only, the power readings POWER_OFFSET_S after the counter; the instant power is the mean of the 25 ms before its update, the average
 * that of the second before it; the energy counter is exact at an update.
 *
 * FAKE_NVML_GPUS, FAKE_NVML_HALF_PERIOD_MS: boards and wave. FAKE_NVML_CONTROL: a file that is read at every call, one fault a
 * line, so that a test can change a board's mind while a process runs:
 *   init CODE         nvmlInit fails                    lost GPU        the board answers nothing until NVML is opened again without this line
 *   field ID CODE     one field fails                   absent GPU      the board is not on the bus
 *   call NAME CODE    one call fails, see FAIL()        block MS        field values take so long
 *   driver EPOCH      after a change everything is UNINITIALIZED until NVML is opened again
 *   deny CODE         every setter fails                ignore SETTER   lock, cap: the setter succeeds and changes nothing
 *   mig BOARD         MIG is on                         vgpu MODE       virtualisation mode of all boards
 *   process PID       it uses every board
 *   fail CODE         every call on a board fails       counter GPU J     its energy counter says this, and moves no more
 *   power GPU W       its power readings say this       adds GPU J        its energy counter says so much more
 *   p2p CODE          status of every way between boards: 0 is well                  linkdown BOARD   two of its NVLinks are down
 *
 * FAKE_NVML_STATE: a file that holds what setters changed, so that processes see each other's locks as they do on real boards.
 * FAKE_NVML_STATE.log has a line a setter call, which ends in "journal" if the file FAKE_NVML_JOURNAL existed at that moment.
 * A lock scales the busy part of the power with the cube of the clock; a clock from 1830 to 1980 MHz is clamped to 1830.
 *
 * Numbers of the model come from h200.json (-D options of the build), else the ones below.
 *
 * gcc -shared -fPIC -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 fake_nvml.c -lm
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MOST 16
#ifndef IDLE_W
#define IDLE_W 80
#define BUSY_W 720
#define UPDATE_S 0.1
#define POWER_OFFSET_S 0.06
#define INSTANT_WINDOW_S 0.025
#define AVERAGE_WINDOW_S 1.0
#define LIMIT_W 700
#define LIMIT_MIN_W 200
#define MEMORY_W 46.56
#define SM_MHZ 1980
#define SM_IDLE_MHZ 345
#define MEMORY_MHZ 3201
#endif
enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, IS_LOST = 15 };

typedef struct {
    uint32_t field, scope;
    int64_t timestamp, latency;
    int type, result;
    union { double d; uint32_t ui; uint64_t ull; } value;
} Field;

static int boards[MOST], count;         /* NVML's order: position -> board */
static int stale[MOST];                 /* handles that a loss has made useless */
static int opened, epoch;

static int setting(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

/* The number behind `word argument` in the control file; -1 if there is no such line. */
static int fault(const char *word, const char *argument) {
    char line[128], first[64], second[64];
    int number, found = -1;
    const char *path = getenv("FAKE_NVML_CONTROL");
    FILE *file = path ? fopen(path, "r") : NULL;
    while (file && fgets(line, sizeof line, file)) {
        int read = sscanf(line, "%63s %63s %d", first, second, &number);
        if (read >= 2 && !strcmp(first, word) && (!argument || !strcmp(second, argument)))
            found = read == 3 ? number : atoi(second);
    }
    if (file) fclose(file);
    return found;
}

static int fault_of(const char *word, int number) {
    char text[16];
    snprintf(text, sizeof text, "%d", number);
    return fault(word, text);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

/* What setters changed on a board, since when, and the energy up to then; 0 is unchanged. */
typedef struct { int lock_mhz, cap_mw; double since, joules; } Set;

static const char *state_path(void) { const char *path = getenv("FAKE_NVML_STATE"); return path && *path ? path : NULL; }

static Set set_of(int board) {
    Set set = {0, 0, 0, 0}, line;
    int number;
    FILE *file = state_path() ? fopen(state_path(), "r") : NULL;
    while (file && fscanf(file, "%d %d %d %lf %lf", &number, &line.lock_mhz, &line.cap_mw, &line.since, &line.joules) == 5)
        if (number == board) set = line;
    if (file) fclose(file);
    return set;
}

static double idle_w(int board) { return IDLE_W + 10 * board; }
static double busy_w_of(int board, Set set) {
    double share = set.lock_mhz ? (double)set.lock_mhz / SM_MHZ : 1;
    double power = idle_w(board) + (BUSY_W + 20 * board - idle_w(board)) * share * share * share;
    return set.cap_mw && power > set.cap_mw / 1e3 ? set.cap_mw / 1e3 : power;
}
static double half_period(void) { return setting("FAKE_NVML_HALF_PERIOD_MS", 500) / 1e3; }
static double wave_joules(int board, Set set, double t) {
    /* Not fmod(): where t is a whole number of periods, it and the quotient may round to different sides. */
    double half = half_period(), whole = floor(t / (2 * half));
    double busy_s = whole * half + fmin(fmax(t - whole * 2 * half, 0), half);
    return idle_w(board) * t + (busy_w_of(board, set) - idle_w(board)) * busy_s;
}
/* Before the last change the present power stands in for the one before it: a window that reaches across is wrong, the counter is not. */
static double joules(int board, double t) {
    Set set = set_of(board);
    return set.joules + wave_joules(board, set, t) - wave_joules(board, set, set.since);
}
static double update(void) { return floor(now() / UPDATE_S) * UPDATE_S; }
static double power_update(void) { return floor((now() - POWER_OFFSET_S) / UPDATE_S) * UPDATE_S + POWER_OFFSET_S; }
static double mean_w(int board, double window) {
    double end = power_update();
    return (joules(board, end) - joules(board, end - window)) / window;
}

static int setter(int board, const char *name, int value) {
    Set sets[MOST], *set = &sets[board];
    char path[512];
    int code = fault("deny", NULL);
    const char *journal = getenv("FAKE_NVML_JOURNAL");
    if (!state_path()) return NOT_SUPPORTED;
    snprintf(path, sizeof path, "%s.log", state_path());
    FILE *log = fopen(path, "a"), *witness = journal ? fopen(journal, "r") : NULL;
    if (log) { fprintf(log, "%s %d %d%s\n", name, board, value, witness ? " journal" : ""); fclose(log); }
    if (witness) fclose(witness);
    if (code > 0) return code;
    if (fault("ignore", !strcmp(name, "cap") ? "cap" : "lock") >= 0) return OK;
    for (int i = 0; i < MOST; i++) sets[i] = set_of(i);
    set->joules = joules(board, now());
    set->since = now();
    if (!strcmp(name, "cap")) set->cap_mw = value; else set->lock_mhz = value;
    snprintf(path, sizeof path, "%s.new", state_path());
    FILE *file = fopen(path, "w");
    for (int i = 0; i < MOST; i++)
        fprintf(file, "%d %d %d %.6f %.6f\n", i, sets[i].lock_mhz, sets[i].cap_mw, sets[i].since, sets[i].joules);
    fclose(file);
    rename(path, state_path());
    return OK;
}
static int busy(void) { return fmod(now(), 2 * half_period()) < half_period(); }

/* The state of a handle: every call on a device starts with this. */
static int usable(void *handle, int *board) {
    *board = (int)(intptr_t)handle - 1;
    if (!opened || (fault("driver", NULL) > 0 && fault("driver", NULL) != epoch)) return UNINITIALIZED;
    if (fault("fail", NULL) > 0) return fault("fail", NULL);
    if (fault_of("lost", *board) >= 0) stale[*board] = 1;
    return stale[*board] ? IS_LOST : OK;
}
#define DEVICE(handle) int board, state = usable(handle, &board); if (state) return state; (void)board
#define FAIL(name) { int code = fault("call", name); if (code > 0) return code; }

int nvmlInitWithFlags(unsigned flags) {
    int code = fault("init", NULL);
    (void)flags;
    if (code > 0) return code;
    opened = 1;
    epoch = fault("driver", NULL);
    count = 0;
    for (int board = 0; board < setting("FAKE_NVML_GPUS", 2) && board < MOST; board++) {
        stale[board] = 0;
        if (fault_of("absent", board) < 0) boards[count++] = board;
    }
    return OK;
}
int nvmlShutdown(void) { opened = 0; return OK; }
const char *nvmlErrorString(int code) { static char text[32]; snprintf(text, sizeof text, "fake error %d", code); return text; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "590.48.01-fake"); return OK; }
int nvmlDeviceGetCount_v2(unsigned *value) { *value = (unsigned)count; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned position, void **handle) {
    if ((int)position >= count) return INVALID;
    *handle = (void *)(intptr_t)(boards[position] + 1);
    DEVICE(*handle);
    return OK;
}
int nvmlDeviceGetName(void *handle, char *text, unsigned size) { DEVICE(handle); snprintf(text, size, "Fake H200"); return OK; }
int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) { DEVICE(handle); snprintf(text, size, "GPU-fake-%d", board); return OK; }
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *mw) { DEVICE(handle); FAIL("limit"); *mw = LIMIT_W * 1000; return OK; }
int nvmlDeviceGetMemoryInfo(void *handle, uint64_t *total_free_used) {
    DEVICE(handle);
    FAIL("memory");
    total_free_used[0] = 141ull << 30;
    total_free_used[1] = 41ull << 30;
    total_free_used[2] = 100ull << 30;
    return OK;
}
int nvmlDeviceGetClockInfo(void *handle, int type, unsigned *mhz) {
    DEVICE(handle);
    FAIL("clock");
    int lock = set_of(board).lock_mhz;
    *mhz = type == 2 ? MEMORY_MHZ : !busy() ? SM_IDLE_MHZ : lock ? lock : SM_MHZ;
    return OK;
}
int nvmlDeviceGetUtilizationRates(void *handle, unsigned *gpu_memory) {
    DEVICE(handle);
    FAIL("utilization");
    gpu_memory[0] = 75;
    gpu_memory[1] = 25;
    return OK;
}
int nvmlDeviceGetTemperatureV(void *handle, int *version_sensor_value) {
    DEVICE(handle);
    FAIL("temperature_v");
    version_sensor_value[2] = 45;
    return OK;
}
int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned *value) { (void)sensor; DEVICE(handle); FAIL("temperature"); *value = 44; return OK; }
int nvmlDeviceGetCurrentClocksEventReasons(void *handle, uint64_t *bits) { DEVICE(handle); FAIL("reasons"); *bits = busy() ? 0x4 : 0x5; return OK; }

int nvmlDeviceGetFieldValues(void *handle, int length, Field *fields) {
    DEVICE(handle);
    FAIL("fields");
    int block_ms = fault("block", NULL);
    if (block_ms > 0) {
        struct timespec pause = {block_ms / 1000, block_ms % 1000 * 1000000L};
        nanosleep(&pause, NULL);
    }
    for (int i = 0; i < length; i++) {
        Field *field = &fields[i];
        int code = fault_of("field", (int)field->field);
        field->type = 1;
        field->result = code > 0 ? code : OK;
        if (field->field == 185 && field->scope == 2) field->value.ui = (uint32_t)(MEMORY_W * 1e3);
        else if (field->field == 138 || field->field == 139) { field->type = 3; field->value.ull = 1000ull * field->field; }
        else if (field->scope != 0) field->result = NOT_SUPPORTED;
        else if (field->field == 190) field->value.ui = set_of(board).cap_mw ? set_of(board).cap_mw : LIMIT_W * 1000;
        else if (field->field == 74 || (field->field >= 269 && field->field <= 271)) { field->type = 3; field->value.ull = 1500000000ull * (field->field == 74); }
        else if (field->field == 197 || field->field == 198) field->value.ui = 1000u * field->field;
        else if ((field->field == 185 || field->field == 186) && fault_of("power", board) >= 0) field->value.ui = (uint32_t)fault_of("power", board) * 1000u;
        else if (field->field == 186) field->value.ui = (uint32_t)(mean_w(board, INSTANT_WINDOW_S) * 1e3);
        else if (field->field == 185) field->value.ui = (uint32_t)(mean_w(board, AVERAGE_WINDOW_S) * 1e3);
        else if (field->field == 83) {
            int fixed = fault_of("counter", board), more = fault_of("adds", board);
            field->type = 3;
            field->value.ull = fixed >= 0 ? fixed * 1000ull : (uint64_t)((joules(board, update()) + (more > 0 ? more : 0)) * 1e3);
        }
        else field->result = NOT_SUPPORTED;
    }
    return OK;
}

/* Setters, and what is read before them. */
int nvmlDeviceSetGpuLockedClocks(void *handle, unsigned low, unsigned high) {
    DEVICE(handle);
    if (low > high || high < 210) return INVALID;
    return setter(board, "lock", high > 1830 && high <= SM_MHZ ? 1830 : (int)high);
}
int nvmlDeviceResetGpuLockedClocks(void *handle) { DEVICE(handle); return setter(board, "reset", 0); }
int nvmlDeviceSetPowerManagementLimit(void *handle, unsigned mw) {
    DEVICE(handle);
    if (mw < LIMIT_MIN_W * 1000 || mw > LIMIT_W * 1000) return INVALID;
    return setter(board, "cap", (int)mw);
}
int nvmlDeviceGetPowerManagementLimit(void *handle, unsigned *mw) {
    DEVICE(handle);
    FAIL("cap");
    *mw = set_of(board).cap_mw ? (unsigned)set_of(board).cap_mw : LIMIT_W * 1000;
    return OK;
}
int nvmlDeviceGetPowerManagementLimitConstraints(void *handle, unsigned *low, unsigned *high) {
    DEVICE(handle);
    *low = LIMIT_MIN_W * 1000;
    *high = LIMIT_W * 1000;
    return OK;
}
int nvmlDeviceGetSupportedMemoryClocks(void *handle, unsigned *length, unsigned *mhz) {
    DEVICE(handle);
    if (*length < 1 || !mhz) { *length = 1; return INSUFFICIENT_SIZE; }
    *length = 1;
    mhz[0] = MEMORY_MHZ;
    return OK;
}
int nvmlDeviceGetSupportedGraphicsClocks(void *handle, unsigned memory, unsigned *length, unsigned *mhz) {
    DEVICE(handle);
    (void)memory;
    if (*length < 2 || !mhz) { *length = 2; return INSUFFICIENT_SIZE; }
    *length = 2;
    mhz[0] = SM_MHZ;
    mhz[1] = SM_IDLE_MHZ;
    return OK;
}
int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    DEVICE(handle);
    *current = *pending = fault_of("mig", board) >= 0;
    return OK;
}
int nvmlDeviceGetVirtualizationMode(void *handle, uint32_t *mode) {
    DEVICE(handle);
    *mode = fault("vgpu", NULL) > 0 ? (uint32_t)fault("vgpu", NULL) : 0;
    return OK;
}
typedef struct { unsigned pid; uint64_t used; unsigned instance, compute; } Process;
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *length, Process *list) {
    DEVICE(handle);
    FAIL("processes");
    int pid = fault("process", NULL);
    unsigned have = *length;
    *length = pid > 0;
    if (pid <= 0) return OK;
    if (have < 1 || !list) return INSUFFICIENT_SIZE;
    list[0] = (Process){(unsigned)pid, 1ull << 30, 0xFFFFFFFF, 0xFFFFFFFF};
    return OK;
}

/* What joins the boards, as on two H200: 18 NVLinks each, nothing but the processors in between otherwise. */
#define LINKS 18
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 13000; return OK; }
int nvmlDeviceGetPowerManagementDefaultLimit(void *handle, unsigned *mw) { DEVICE(handle); *mw = LIMIT_W * 1000; return OK; }
int nvmlDeviceGetP2PStatus(void *handle, void *other, int index, int *status) {
    DEVICE(handle);
    (void)other, (void)index;
    *status = fault("p2p", NULL) > 0 ? fault("p2p", NULL) : 0;
    return OK;
}
int nvmlDeviceGetTopologyCommonAncestor(void *handle, void *other, int *level) { DEVICE(handle); (void)other; *level = 50; return OK; }
int nvmlDeviceGetNvLinkState(void *handle, unsigned link, int *active) {
    DEVICE(handle);
    if (link >= LINKS) return INVALID;
    *active = link >= 2 || fault_of("linkdown", board) < 0;
    return OK;
}
