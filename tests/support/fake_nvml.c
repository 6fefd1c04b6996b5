/* A libnvidia-ml.so.1 without a GPU, for tests that go through the real pynvml.
 *
 * Board g draws busy_w(g) for half a period and idle_w(g) for the other half of CLOCK_MONOTONIC, so the energy up to any moment has
 * a closed form and needs no state. What a board tells is what real boards were seen to tell: values change every UPDATE_S
 * only; the instant power is the mean of the 25 ms before an update, the average that of the second before it; the energy
 * counter is exact at an update.
 *
 * FAKE_NVML_GPUS, FAKE_NVML_HALF_PERIOD_MS: boards and wave. FAKE_NVML_CONTROL: a file that is read at every call, one fault a
 * line, so that a test can change a board's mind while a process runs:
 *   init CODE         nvmlInit fails                    lost GPU        the board answers nothing until NVML is opened again without this line
 *   field ID CODE     one field fails                   absent GPU      the board is not on the bus
 *   call NAME CODE    one call fails, see FAIL()        block MS        field values take so long
 *   driver EPOCH      after a change everything is UNINITIALIZED until NVML is opened again
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
#define UPDATE_S 0.1
#define INSTANT_WINDOW_S 0.025
#define AVERAGE_WINDOW_S 1.0
enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, IS_LOST = 15 };

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

static double idle_w(int board) { return 80 + 10 * board; }
static double busy_w(int board) { return 600 + 20 * board; }
static double half_period(void) { return setting("FAKE_NVML_HALF_PERIOD_MS", 500) / 1e3; }
static double joules(int board, double t) {
    double half = half_period(), busy_s = floor(t / (2 * half)) * half + fmin(fmod(t, 2 * half), half);
    return idle_w(board) * t + (busy_w(board) - idle_w(board)) * busy_s;
}
static double update(void) { return floor(now() / UPDATE_S) * UPDATE_S; }
static double mean_w(int board, double window) { return (joules(board, update()) - joules(board, update() - window)) / window; }
static int busy(void) { return fmod(now(), 2 * half_period()) < half_period(); }

/* The state of a handle: every call on a device starts with this. */
static int usable(void *handle, int *board) {
    *board = (int)(intptr_t)handle - 1;
    if (!opened || (fault("driver", NULL) > 0 && fault("driver", NULL) != epoch)) return UNINITIALIZED;
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
int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *mw) { DEVICE(handle); FAIL("limit"); *mw = 700000; return OK; }
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
    *mhz = type == 2 ? 3201 : busy() ? 1980 : 345;
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
int nvmlDeviceGetCurrentClocksEventReasons(void *handle, uint64_t *bits) { DEVICE(handle); FAIL("reasons"); *bits = 0x4; return OK; }

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
        field->result = code > 0 ? code : field->scope != 0 ? NOT_SUPPORTED : OK;
        if (field->field == 186) field->value.ui = (uint32_t)(mean_w(board, INSTANT_WINDOW_S) * 1e3);
        else if (field->field == 185) field->value.ui = (uint32_t)(mean_w(board, AVERAGE_WINDOW_S) * 1e3);
        else if (field->field == 83) { field->type = 3; field->value.ull = (uint64_t)(joules(board, update()) * 1e3); }
        else field->result = NOT_SUPPORTED;
    }
    return OK;
}
