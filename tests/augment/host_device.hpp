// What rows.cu needs to run on the CPU: a thread a lane, one block after the other.
#pragma once
#include <pthread.h>

#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

struct Position {
    int x;
};
static thread_local Position threadIdx, blockIdx;
static Position blockDim;
// Two in turn: ThreadSanitizer would take a lane that wakes up late from one barrier to have waited
// for all that others did before the next, and see no race.
static pthread_barrier_t gates[2];
static thread_local int num_waits = 0;
static int barrier_left_out = 0;  // the source line of a barrier that nobody waits at

#define __global__
#define __device__ static
#define __shared__ static
#define __launch_bounds__(lanes)
#define __syncthreads() wait_at(__LINE__)

static void wait_at(int line) {
    if (line != barrier_left_out) pthread_barrier_wait(&gates[num_waits++ % 2]);
}
static void atomicAdd(int* at, int value) { __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
static void atomicMax(int* at, int value) {
    int old = __atomic_load_n(at, __ATOMIC_RELAXED);
    while (value > old && !__atomic_compare_exchange_n(at, &old, value, true, __ATOMIC_RELAXED,
                                                       __ATOMIC_RELAXED)) {
    }
}
static unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

template <class Kernel, class Given>
static void run_on_lanes(Kernel kernel, int grid, int block, const Given& given) {
    for (auto& gate : gates) pthread_barrier_init(&gate, nullptr, block);
    blockDim.x = block;
    std::vector<std::thread> threads;
    for (int lane = 0; lane < block; lane++)
        threads.emplace_back([=] {
            threadIdx.x = lane;
            for (int row = 0; row < grid; row++) {
                blockIdx.x = row;
                kernel(given);
                wait_at(-1);
            }
        });
    for (auto& thread : threads) thread.join();
    for (auto& gate : gates) pthread_barrier_destroy(&gate);
}
