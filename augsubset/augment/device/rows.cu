// The operations of a whole batch in one launch: a block takes one row through all its slots, then
// crops, flips and normalises it. The arithmetic has the types and order of kernels_cpu.py and
// kernels.py, so results are bit-identical; hence --fmad=false, and no intrinsic of lower accuracy.
//
// Compiled for one type of pixels and one number of channels: -DPIXEL_IS_BYTE=0 or 1, -DCHANNELS=n.
// Tests compile this file with g++ too, a thread a lane.

typedef unsigned char Byte;
typedef unsigned long long Word;
#if PIXEL_IS_BYTE
typedef Byte Pixel;
#else
typedef float Pixel;
#endif

// As augsubset.augment.device.launch packs them.
struct Arguments {
    const Pixel* images;
    void* out;
    Pixel* scratch;           // one or two times the batch
    const int* plan;          // a line for each row, see below
    const float* statistics;  // scale and shift of bytes, mean and std of floats; a value a channel
    const float* quantiles;   // 2**16 of the normal distribution
    int rows, height, width, slots, num_params, plan_width;
    int out_type, is_normalised, is_reflected, is_channels_last;
};

// A line of the plan: where the image is among all (two ints, one long long), number of operations,
// the crop's first row and column, whether it is mirrored; then the operations' codes, and their
// parameters as floats.
enum { SOURCE = 0, COUNT = 2, TOP = 3, LEFT = 4, MIRRORED = 5, CODES = 6 };
enum { FLOAT32, FLOAT16, BFLOAT16 };
enum {
    WARP = 1, BLEND, SHARPEN, POSTERIZE, SOLARIZE, AUTOCONTRAST, EQUALIZE, ERASE, WARP_REFLECTED,
    BLUR, NOISE
};

#define MAX_LANES 1024
#define EACH(i, count) for (int i = threadIdx.x; i < (count); i += blockDim.x)
#define WHITE (PIXEL_IS_BYTE ? 255.f : 1.f)

// What the lanes of a block share; sums and extremes are never needed at once.
struct Shared {
    union {
        Word sums[MAX_LANES];
        struct { float lows[MAX_LANES], highs[MAX_LANES]; } ends;
    };
    int histogram[256], below[2][256], table[256], brightest;
};

__device__ float clamp_to(float value, float low, float high) {
    return value < low ? low : value > high ? high : value;
}

__device__ Pixel clamp_to_pixel(float value) { return (Pixel)clamp_to(value, 0.f, WHITE); }

__device__ float compute_gray(const Pixel* x, int i, int size) {
    float value = (float)x[i];
#if CHANNELS == 3
    value = value * 0.2989f;
    value = value + (float)x[size + i] * 0.587f;
    value = value + (float)x[2 * size + i] * 0.114f;
    if (PIXEL_IS_BYTE) value = floorf(value);
#endif
    return value;
}

__device__ void warp(const Pixel* x, const float* p, Pixel* out, int height, int width) {
    const int size = height * width;
    EACH(i, size) {
        const int row = i / width, column = i - row * width;
        const float across = rintf(p[0] * (float)column + (p[1] * (float)row + p[2]));
        const float down = rintf(p[3] * (float)column + (p[4] * (float)row + p[5]));
        // Clamped to just outside before the cast: a float beyond int has no defined result.
        const int at_x = (int)clamp_to(across, -1.f, (float)width);
        const int at_y = (int)clamp_to(down, -1.f, (float)height);
        const bool is_inside = at_x >= 0 && at_x < width && at_y >= 0 && at_y < height;
        for (int c = 0; c < CHANNELS; c++)
            out[c * size + i] = is_inside ? x[c * size + at_y * width + at_x] : (Pixel)0;
    }
}

__device__ float reflect(float at, int count) {
    const float last = (float)(count - 1);
    return clamp_to(last - fabsf(fabsf(at) - last), 0.f, last);
}

__device__ void warp_reflected(const Pixel* x, const float* p, Pixel* out, int height, int width) {
    const int size = height * width;
    EACH(i, size) {
        const int row = i / width, column = i - row * width;
        const float across = rintf(p[0] * (float)column + (p[1] * (float)row + p[2]));
        const float down = rintf(p[3] * (float)column + (p[4] * (float)row + p[5]));
        const int from = (int)reflect(down, height) * width + (int)reflect(across, width);
        for (int c = 0; c < CHANNELS; c++) out[c * size + i] = x[c * size + from];
    }
}

__device__ void blend(const Pixel* x, const float* p, Pixel* out, int size, Shared& shared) {
    float add = p[2];  // where it is a zero, its sign counts
    if (p[2] != 0.f) {
        // The mean in fixed point: an integer sum is the same in any order.
        const float unit = PIXEL_IS_BYTE ? 1.f : 1048576.f;
        Word mine = 0;
        EACH(i, size) mine += (Word)(long long)rintf(compute_gray(x, i, size) * unit);
        shared.sums[threadIdx.x] = mine;
        for (int half = blockDim.x / 2; half > 0; half /= 2) {
            __syncthreads();
            if (threadIdx.x < half) shared.sums[threadIdx.x] += shared.sums[threadIdx.x + half];
        }
        __syncthreads();
        const long long count = (PIXEL_IS_BYTE ? 1ll : 1048576ll) * size;
        add = (float)(long long)shared.sums[0] / (float)count * p[2];
    }
    EACH(i, size) {
        const float gray = compute_gray(x, i, size);
        for (int c = 0; c < CHANNELS; c++) {
            const Pixel old = x[c * size + i];
            float value = (float)old * p[0];
            if (CHANNELS != 1) value = value + gray * p[1];
            value = value + add;
            // A gray image has no color to change.
            out[c * size + i] = CHANNELS == 1 && p[1] != 0.f ? old : clamp_to_pixel(value);
        }
    }
}

__device__ void sharpen(const Pixel* x, const float* p, Pixel* out, int height, int width) {
    const int size = height * width;
    const float share = 1.f - p[0];
    EACH(i, size) {
        const int row = i / width, column = i - row * width;
        const bool is_border =
            row == 0 || row == height - 1 || column == 0 || column == width - 1;
        for (int c = 0; c < CHANNELS; c++) {
            const Pixel* at = x + c * size + i;
            if (is_border) {
                out[c * size + i] = *at;
                continue;
            }
            float total = 0.f;
            for (int side = -1; side <= 1; side++) {
                float sum = (float)at[side - width] + (float)at[side];
                sum = sum + (float)at[side + width];
                total = side < 0 ? sum : total + sum;
            }
            const float old = (float)*at;
            float smooth = (total + old * 4.f) / 13.f;
            if (PIXEL_IS_BYTE) smooth = rintf(smooth);
            out[c * size + i] = clamp_to_pixel(old + (smooth - old) * share);
        }
    }
}

// The parameter is the mask of bytes, or the number of levels of floats: powers of two are taken on
// the CPU.
__device__ void posterize(const Pixel* x, const float* p, Pixel* out, int count) {
    EACH(i, count) {
        if (PIXEL_IS_BYTE) out[i] = (Pixel)((int)x[i] & (int)p[0]);
        else out[i] = (Pixel)(fminf(floorf((float)x[i] * p[0]), p[0] - 1.f) / p[0]);
    }
}

__device__ void solarize(const Pixel* x, const float* p, Pixel* out, int count) {
    const float threshold = PIXEL_IS_BYTE ? ceilf(p[0] * 255.f) : p[0];
    EACH(i, count) {
        const float value = (float)x[i];
        out[i] = value >= threshold ? (Pixel)(WHITE - value) : x[i];
    }
}

__device__ void autocontrast(const Pixel* x, Pixel* out, int size, Shared& shared) {
    float* lows = shared.ends.lows;
    float* highs = shared.ends.highs;
    for (int c = 0; c < CHANNELS; c++, x += size, out += size) {
        float low = (float)x[0], high = low;
        EACH(i, size) {
            const float value = (float)x[i];
            low = value < low ? value : low;
            high = value > high ? value : high;
        }
        lows[threadIdx.x] = low;
        highs[threadIdx.x] = high;
        for (int half = blockDim.x / 2; half > 0; half /= 2) {
            __syncthreads();
            if (threadIdx.x < half) {
                const float other_low = lows[threadIdx.x + half];
                const float other_high = highs[threadIdx.x + half];
                if (other_low < lows[threadIdx.x]) lows[threadIdx.x] = other_low;
                if (other_high > highs[threadIdx.x]) highs[threadIdx.x] = other_high;
            }
        }
        __syncthreads();
        low = lows[0] + 0.f;  // -0 and +0 compare equal: make it +0
        high = highs[0];
        const float scale = (high - low) * (float)(1 / (double)WHITE);
        EACH(i, size)
            out[i] = high > low ? clamp_to_pixel(((float)x[i] - low) / scale) : x[i];
        __syncthreads();  // the next channel writes what other lanes may still read
    }
}

__device__ int get_level(Pixel value) {
    return PIXEL_IS_BYTE ? (int)value : (int)((float)value * 255.999f);
}

__device__ void equalize(const Pixel* x, Pixel* out, int size, Shared& shared) {
    for (int c = 0; c < CHANNELS; c++, x += size, out += size) {
        EACH(level, 256) shared.histogram[level] = 0;
        if (threadIdx.x == 0) shared.brightest = 0;
        __syncthreads();
        EACH(i, size) atomicAdd(&shared.histogram[get_level(x[i])], 1);
        __syncthreads();
        EACH(level, 256) {
            if (shared.histogram[level]) atomicMax(&shared.brightest, level);
            shared.below[0][level] = shared.histogram[level];
        }
        int from = 0;
        for (int away = 1; away < 256; away *= 2, from ^= 1) {  // prefix sums by doubling
            __syncthreads();
            EACH(level, 256) {
                const int sum = level >= away ? shared.below[from][level - away] : 0;
                shared.below[from ^ 1][level] = shared.below[from][level] + sum;
            }
        }
        const int step = (size - shared.histogram[shared.brightest]) / 255;
        EACH(level, 256) {
            const int below = shared.below[from][level] - shared.histogram[level];
            const int value = step == 0 ? level : (below + step / 2) / step;
            shared.table[level] = value < 255 ? value : 255;
        }
        __syncthreads();
        EACH(i, size) {
            const int value = shared.table[get_level(x[i])];
            out[i] = PIXEL_IS_BYTE ? (Pixel)value : (Pixel)((float)value / 255.f);
        }
    }
}

__device__ void erase(const Pixel* x, const float* p, int num_params, Pixel* out, int height,
                      int width) {
    const int size = height * width;
    EACH(i, size) {
        const float row = (float)(i / width), column = (float)(i % width);
        const bool is_inside = row >= p[0] && row < p[2] && column >= p[1] && column < p[3];
        for (int c = 0; c < CHANNELS; c++) {
            const float colour = num_params >= 4 + CHANNELS ? p[4 + c] : p[4];
            out[c * size + i] = is_inside ? (Pixel)(colour * WHITE) : x[c * size + i];
        }
    }
}

__device__ int mirror(int at, int count) {
    at = at < 0 ? -at : at;
    return at > count - 1 ? 2 * (count - 1) - at : at;
}

// A lane computes the five row sums of its column itself, which takes no exchange between lanes.
__device__ void blur(const Pixel* x, const float* p, Pixel* out, int height, int width) {
    const int size = height * width, smaller = height < width ? height : width;
    const int radius = smaller - 1 < 2 ? smaller - 1 : 2;
    EACH(i, size) {
        const int row = i / width, column = i - row * width;
        for (int c = 0; c < CHANNELS; c++) {
            float sums[5];
            for (int side = -radius; side <= radius; side++) {
                const Pixel* line = x + c * size + mirror(row + side, height) * width;
                float sum = (float)line[column] * p[0];
                for (int away = 1; away <= radius; away++) {
                    const float left = (float)line[mirror(column - away, width)];
                    const float both = left + (float)line[mirror(column + away, width)];
                    sum = sum + both * p[away];
                }
                sums[side + 2] = sum;
            }
            float total = sums[2] * p[0];
            for (int away = 1; away <= radius; away++) {
                const float both = sums[2 - away] + sums[2 + away];
                total = total + both * p[away];
            }
            out[c * size + i] = (Pixel)(PIXEL_IS_BYTE ? rintf(total) : total);
        }
    }
}

__device__ Word mix_word(Word state) {
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9ull;
    state = (state ^ (state >> 27)) * 0x94D049BB133111EBull;
    return state ^ (state >> 31);
}

__device__ void add_noise(const Pixel* x, const float* p, const float* quantiles, Pixel* out,
                          int count) {
    const Word high = (Word)(long long)(p[1] * 16777216.f);
    const Word low = (Word)(long long)(p[2] * 16777216.f);
    const Word seed = mix_word((high << 24) | low);
    const float sigma = p[0] * WHITE;
    EACH(i, count) {
        const Word word = mix_word(seed + 0x9E3779B97F4A7C15ull * (Word)(i / 4 + 1));
        const int bin = (int)(short)(word >> (16 * (i % 4))) + 32768;
        const float drawn = quantiles[bin] * sigma;
        if (PIXEL_IS_BYTE) {
            const int value = (int)(short)(int)drawn + (int)x[i];
            out[i] = (Pixel)(value < 0 ? 0 : value > 255 ? 255 : value);
        } else {
            out[i] = clamp_to_pixel(drawn + (float)x[i]);
        }
    }
}

__device__ void apply(int code, const Pixel* x, const float* p, Pixel* out, const Arguments& a,
                      Shared& shared) {
    const int size = a.height * a.width;
    switch (code) {
        case WARP: warp(x, p, out, a.height, a.width); break;
        case BLEND: blend(x, p, out, size, shared); break;
        case SHARPEN: sharpen(x, p, out, a.height, a.width); break;
        case POSTERIZE: posterize(x, p, out, CHANNELS * size); break;
        case SOLARIZE: solarize(x, p, out, CHANNELS * size); break;
        case AUTOCONTRAST: autocontrast(x, out, size, shared); break;
        case EQUALIZE: equalize(x, out, size, shared); break;
        case ERASE: erase(x, p, a.num_params, out, a.height, a.width); break;
        case WARP_REFLECTED: warp_reflected(x, p, out, a.height, a.width); break;
        case BLUR: blur(x, p, out, a.height, a.width); break;
        case NOISE: add_noise(x, p, a.quantiles, out, CHANNELS * size); break;
    }
    __syncthreads();  // the next operation reads pixels that other lanes wrote
}

__device__ long long get_source(const int* line) { return *(const long long*)(line + SOURCE); }

__device__ const float* get_params(const Arguments& a, const int* line, int slot) {
    return (const float*)(line + CODES + a.slots) + slot * a.num_params;
}

// Augmented images of the same type. The last operation writes to the output.
extern "C" __global__ void __launch_bounds__(MAX_LANES) augment_rows(Arguments a) {
    __shared__ Shared shared;
    const int* line = a.plan + (long long)blockIdx.x * a.plan_width;
    const long long total = (long long)CHANNELS * a.height * a.width;
    const int count = line[COUNT];
    const Pixel* from = a.images + get_source(line) * total;
    Pixel* out = (Pixel*)a.out + blockIdx.x * total;
    Pixel* scratch = a.scratch + blockIdx.x * total;
    if (count == 0) EACH(i, (int)total) out[i] = from[i];
    for (int slot = 0; slot < count; slot++) {
        Pixel* to = (count - 1 - slot) % 2 ? scratch : out;
        apply(line[CODES + slot], from, get_params(a, line, slot), to, a, shared);
        from = to;
    }
}

// Both round to the nearest, halves to even, as torch does; the values are finite.
__device__ unsigned short to_float16(float value) {
    const unsigned all = __float_as_uint(value), sign = (all >> 16) & 0x8000u;
    const unsigned bits = all & 0x7fffffffu;
    unsigned half;
    if (bits >= 0x47800000u) half = 0x7c00u;  // 65536 and above: infinity
    else if (bits < 0x38800000u) half = (unsigned)rintf(fabsf(value) * 16777216.f);  // subnormal
    else half = (bits + 0xfffu + ((bits >> 13) & 1u) - 0x38000000u) >> 13;
    return (unsigned short)(sign | half);
}

__device__ unsigned short to_bfloat16(float value) {
    const unsigned bits = __float_as_uint(value);
    return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ void store(const Arguments& a, long long at, float value) {
    if (a.out_type == FLOAT32) ((float*)a.out)[at] = value;
    else ((unsigned short*)a.out)[at] =
        a.out_type == FLOAT16 ? to_float16(value) : to_bfloat16(value);
}

__device__ float normalise(Pixel pixel, int c, const Arguments& a) {
    float value = (float)pixel;
    if (a.is_normalised && PIXEL_IS_BYTE)
        return value * a.statistics[c] - a.statistics[CHANNELS + c];
    if (PIXEL_IS_BYTE) return value / 255.f;
    return a.is_normalised ? (value - a.statistics[c]) / a.statistics[CHANNELS + c] : value;
}

// A batch as the model takes it. Floats were checked on the CPU: clamping removes rounding errors.
extern "C" __global__ void __launch_bounds__(MAX_LANES) deliver_rows(Arguments a) {
    __shared__ Shared shared;
    const int* line = a.plan + (long long)blockIdx.x * a.plan_width;
    const int height = a.height, width = a.width, size = height * width;
    const long long total = (long long)CHANNELS * size, row = blockIdx.x;
    const int count = line[COUNT];
    const Pixel* from = a.images + get_source(line) * total;
    Pixel* scratch[2] = {a.scratch + row * total, a.scratch + (a.rows + row) * total};
    if (count > 0 && !PIXEL_IS_BYTE) {
        EACH(i, (int)total) scratch[1][i] = clamp_to_pixel((float)from[i]);
        __syncthreads();
        from = scratch[1];
    }
    for (int slot = 0; slot < count; slot++) {
        apply(line[CODES + slot], from, get_params(a, line, slot), scratch[slot % 2], a, shared);
        from = scratch[slot % 2];
    }
    const int top = line[TOP], left = line[LEFT];
    const bool is_mirrored = line[MIRRORED] != 0;
    EACH(i, size) {
        int y = i / width, x = i - y * width;
        x = left + (is_mirrored ? width - 1 - x : x);
        y = top + y;
        if (a.is_reflected) {
            x = mirror(x, width);
            y = mirror(y, height);
        }
        const bool is_inside = y >= 0 && y < height && x >= 0 && x < width;
        for (int c = 0; c < CHANNELS; c++) {
            Pixel pixel = is_inside ? from[c * size + y * width + x] : (Pixel)0;
            if (!PIXEL_IS_BYTE && count == 0) pixel = clamp_to_pixel((float)pixel);
            const int at = a.is_channels_last ? i * CHANNELS + c : c * size + i;
            store(a, row * total + at, normalise(pixel, c, a));
        }
    }
}
