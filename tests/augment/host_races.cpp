// Runs rows.cu under ThreadSanitizer: every operation after every other, on eight lanes. The first
// argument is the line of a barrier to leave out, which has to be noticed; 0 for none.
#include "host_device.hpp"
#include "rows.cu"
#include <cstdlib>

int main(int count, char** given) {
    barrier_left_out = count > 1 ? std::atoi(given[1]) : 0;
    const int lanes = count > 2 ? std::atoi(given[2]) : 8;
    const int height = 6, width = 7, slots = 22, num_params = 7, rows = 2;
    const int total = CHANNELS * height * width, plan_width = CODES + slots * (1 + num_params);
    std::vector<Pixel> images(rows * total), scratch(2 * rows * total), same(rows * total);
    std::vector<float> out(rows * total), quantiles(1 << 16);
    std::vector<long long> lines(rows * plan_width / 2);
    for (int i = 0; i < rows * total; i++)
        images[i] = (Pixel)(PIXEL_IS_BYTE ? i * 37 % 256 : i * 37 % 256 / 255.f);
    for (int row = 0; row < rows; row++) {
        int* line = (int*)lines.data() + row * plan_width;
        *(long long*)line = row;
        line[COUNT] = slots;
        float* params = (float*)(line + CODES + slots);
        for (int slot = 0; slot < slots; slot++) {
            line[CODES + slot] = row ? 11 - slot % 11 : 1 + slot % 11;
            const float each[7] = {0.5f, 0.25f, 0.25f, 0.f, 0.5f, 0.5f, 0.5f};
            std::memcpy(params + slot * num_params, each, sizeof each);
        }
    }
    Arguments a = {};
    a.images = images.data(), a.out = same.data(), a.scratch = scratch.data();
    a.plan = (const int*)lines.data(), a.quantiles = quantiles.data();
    a.rows = rows, a.height = height, a.width = width, a.slots = slots;
    a.num_params = num_params, a.plan_width = plan_width;
    run_on_lanes(augment_rows, rows, lanes, a);
    a.out = out.data();
    run_on_lanes(deliver_rows, rows, lanes, a);
    return 0;
}
