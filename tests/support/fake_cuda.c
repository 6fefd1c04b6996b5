/* A libcuda.so.1 without a GPU: the calls that pd_connector.memory.cumem makes, on memory files of Linux.
 *
 * CUDA hands another process memory by a file descriptor, and a memory file is one, so the descriptor takes the same way. Addresses are the
 * process's own, streams are not heeded: a copy is over when the call returns.
 *
 * gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o libcuda.so.1 fake_cuda.c
 */
#define _GNU_SOURCE
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define OUT_OF_MEMORY 2
#define INVALID_VALUE 1
#define AT(address) ((void *)(uintptr_t)(address))

int cuGetErrorName(int code, const char **name) {
    *name = code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_INVALID_VALUE";
    return 0;
}

int cuMemGetAllocationGranularity(size_t *step, const void *properties, int which) {
    *step = 65536;
    return 0;
}

int cuMemCreate(uint64_t *handle, size_t size, const void *properties, uint64_t flags) {
    int file = memfd_create("gpu", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, size)) return OUT_OF_MEMORY;
    *handle = file;
    return 0;
}

int cuMemExportToShareableHandle(int *descriptor, uint64_t handle, int type, uint64_t flags) {
    *descriptor = dup(handle);
    return *descriptor < 0 ? INVALID_VALUE : 0;
}

int cuMemImportFromShareableHandle(uint64_t *handle, void *descriptor, int type) {
    int file = dup((int)(intptr_t)descriptor);
    *handle = file;
    return file < 0 ? INVALID_VALUE : 0;
}

int cuMemAddressReserve(uint64_t *address, size_t size, size_t alignment, uint64_t wish, uint64_t flags) {
    void *found = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *address = (uintptr_t)found;
    return found == MAP_FAILED ? OUT_OF_MEMORY : 0;
}

int cuMemMap(uint64_t address, size_t size, size_t offset, uint64_t handle, uint64_t flags) {
    void *found = mmap(AT(address), size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, handle, offset);
    return found == MAP_FAILED ? INVALID_VALUE : 0;
}

int cuMemSetAccess(uint64_t address, size_t size, const void *access, size_t count) { return 0; }

int cuMemUnmap(uint64_t address, size_t size) {
    return mmap(AT(address), size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED;
}

int cuMemAddressFree(uint64_t address, size_t size) { return munmap(AT(address), size) ? INVALID_VALUE : 0; }

int cuMemRelease(uint64_t handle) { return close(handle) ? INVALID_VALUE : 0; }

int cuMemcpyAsync(uint64_t target, uint64_t source, size_t size, void *stream) {
    memcpy(AT(target), AT(source), size);
    return 0;
}

int cuMemcpyDtoH_v2(void *target, uint64_t source, size_t size) {
    memcpy(target, AT(source), size);
    return 0;
}

int cuMemsetD8_v2(uint64_t target, unsigned char value, size_t size) {
    memset(AT(target), value, size);
    return 0;
}

int cuCtxSynchronize(void) { return 0; }
