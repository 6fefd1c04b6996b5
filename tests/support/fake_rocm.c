/* A librocm_smi64.so without a GPU, that keeps to rocm_smi.h, for tests of the ctypes calls.
 *
 * Two boards draw 300 and 400 W. FAKE_ROCM_FREQUENCIES=5: the layout of rsmi_frequencies_t before ROCm 6. FAKE_ROCM_ENERGY_PERCENT:
 * rate of the energy counter against the truth. FAKE_ROCM_WITHOUT: the name of a call that answers NOT_SUPPORTED. FAKE_ROCM_INIT:
 * status of rsmi_init.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OK = 0, NOT_SUPPORTED = 2 };
#define BOARDS 2

static int setting(const char *name, int otherwise) { const char *text = getenv(name); return text ? atoi(text) : otherwise; }
static int check(uint32_t board, const char *name) {
    const char *without = getenv("FAKE_ROCM_WITHOUT");
    return board >= BOARDS ? 1 : without && (!strcmp(without, name) || !strcmp(without, "all")) ? NOT_SUPPORTED : OK;
}
#define CHECK() { int status = check(board, __func__); if (status) return status; }
static double watts(uint32_t board) { return 300 + 100 * board; }

int rsmi_init(uint64_t flags) { (void)flags; return setting("FAKE_ROCM_INIT", 0); }
int rsmi_shut_down(void) { return OK; }
int rsmi_num_monitor_devices(uint32_t *number) { *number = BOARDS; return OK; }
int rsmi_version_str_get(int component, char *text, uint32_t length) { (void)component; snprintf(text, length, "6.8.5-fake"); return OK; }
int rsmi_dev_name_get(uint32_t board, char *text, size_t length) { CHECK(); snprintf(text, length, "Fake MI300X"); return OK; }
int rsmi_dev_unique_id_get(uint32_t board, uint64_t *id) { CHECK(); *id = 0xabc0 + board; return OK; }
int rsmi_dev_power_cap_get(uint32_t board, uint32_t sensor, uint64_t *uw) { CHECK(); (void)sensor; *uw = 750000000; return OK; }
int rsmi_dev_current_socket_power_get(uint32_t board, uint64_t *uw) { CHECK(); *uw = (uint64_t)(watts(board) * 1e6); return OK; }
int rsmi_dev_power_ave_get(uint32_t board, uint32_t sensor, uint64_t *uw) { CHECK(); (void)sensor; *uw = (uint64_t)(watts(board) * 1e6) - 1000000; return OK; }
int rsmi_dev_energy_count_get(uint32_t board, uint64_t *steps, float *step_uj, uint64_t *stamp_ns) {
    CHECK();
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    double t = time.tv_sec + time.tv_nsec * 1e-9;
    *step_uj = 15.259f;
    *steps = (uint64_t)(t * watts(board) * setting("FAKE_ROCM_ENERGY_PERCENT", 100) / 100 * 1e6 / *step_uj);
    *stamp_ns = (uint64_t)(t * 1e9);
    return OK;
}
typedef struct { uint32_t supported, current; uint64_t frequency[32]; } Frequencies5;
typedef struct { bool has_deep_sleep; uint32_t supported, current; uint64_t frequency[33]; } Frequencies6;
int rsmi_dev_gpu_clk_freq_get(uint32_t board, int clock, void *out) {
    CHECK();
    uint64_t hz = clock == 4 ? 1300000000 : 2100000000;
    if (setting("FAKE_ROCM_FREQUENCIES", 6) == 5) {
        Frequencies5 *f = out;
        f->supported = 3; f->current = 2;
        f->frequency[0] = 500000000; f->frequency[1] = 800000000; f->frequency[2] = hz;
    } else {
        Frequencies6 *f = out;
        f->has_deep_sleep = board == 1; f->supported = 2; f->current = 1;
        f->frequency[0] = 500000000; f->frequency[1] = hz;
    }
    return OK;
}
int rsmi_dev_busy_percent_get(uint32_t board, uint32_t *percent) { CHECK(); *percent = 80; return OK; }
int rsmi_dev_memory_busy_percent_get(uint32_t board, uint32_t *percent) { CHECK(); *percent = 30; return OK; }
int rsmi_dev_temp_metric_get(uint32_t board, uint32_t sensor, int metric, int64_t *milli) {
    CHECK();
    if (metric != 0 || (sensor == 1 && board == 1)) return NOT_SUPPORTED;
    *milli = sensor == 1 ? 61000 : 52000;
    return OK;
}
int rsmi_dev_memory_usage_get(uint32_t board, int kind, uint64_t *bytes) { CHECK(); (void)kind; *bytes = 100ull << 30; return OK; }
int rsmi_dev_memory_total_get(uint32_t board, int kind, uint64_t *bytes) { CHECK(); (void)kind; *bytes = 192ull << 30; return OK; }
