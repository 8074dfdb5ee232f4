// Linear layers of weights in few bits; only where the processor multiplies integers of 16 bits (AVX-512 VNNI).
//
// Weights in few bits are laid out in tiles of 16 rows and groups of 32 columns. A group of a tile holds the integers
// of two columns of all 16 rows side by side, then those of the next two, then each row's scale and, for 4 bits, minimum,
// in 16 bits where these hold them exactly. Inputs are rounded to integers of 16 bits, by group, and multiplied exactly;
// sums of groups are added in 32 bits. So little is rounded that would not be in 32 bits. Each token's groups are added
// in an order of their own, so that its result does not depend, to the last bit, on how many others there are.

#pragma once

#ifdef __AVX512VNNI__

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "linear.h"

namespace {

constexpr int64_t ROWS = 16, COLUMNS = 32;

struct Half {
    static constexpr int64_t BYTES = 2;
    static __m512 load(const uint8_t* at) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    }
};

struct Single {
    static constexpr int64_t BYTES = 4;
    static __m512 load(const uint8_t* at) { return _mm512_loadu_ps(at); }
};

// The integers from some first one on, by place.
struct Table {
    int16_t values[32];
    Table(int first, int period) {
        for (int i = 0; i < 32; i++) values[i] = static_cast<int16_t>(first + i % period);
    }
};

// The first twice, since of an index's five bits the fifth is the next integer's.
const Table UNSIGNED_4(0, 16), SIGNED_5(-16, 32);

// Each gives, of a group of a tile, two columns by number. Four pairs of columns lie in 64 bytes, in four bits of every 16.

struct Bits4 {  // 0 to 15, with a minimum for each group; what 0 stands for.
    static constexpr int64_t BYTES = ROWS * COLUMNS / 2;
    static constexpr bool MINIMA = true;
    static __m512i pair(const uint8_t* group, int64_t number) {
        const __m512i four = _mm512_loadu_si512(group + number / 4 * 64);
        const __m512i index = _mm512_srli_epi16(four, 4 * (number % 4));
        return _mm512_permutexvar_epi16(index, _mm512_loadu_si512(UNSIGNED_4.values));
    }
};

struct Bits5 {  // -16 to 15: four bits as above, and the fifth of each pair of columns in 4 bytes after them.
    static constexpr int64_t BYTES = ROWS * COLUMNS / 2 + ROWS * COLUMNS / 8;
    static constexpr bool MINIMA = false;
    static __m512i pair(const uint8_t* group, int64_t number) {
        uint32_t fifth;
        std::memcpy(&fifth, group + ROWS * COLUMNS / 2 + 4 * number, 4);
        const __m512i four = _mm512_loadu_si512(group + number / 4 * 64);
        __m512i index = _mm512_and_si512(_mm512_srli_epi16(four, 4 * (number % 4)), _mm512_set1_epi16(15));
        index = _mm512_mask_add_epi16(index, fifth, index, _mm512_set1_epi16(16));
        return _mm512_permutexvar_epi16(index, _mm512_loadu_si512(SIGNED_5.values));
    }
};

struct Bits8 {  // -128 to 127.
    static constexpr int64_t BYTES = ROWS * COLUMNS;
    static constexpr bool MINIMA = false;
    static __m512i pair(const uint8_t* group, int64_t number) {
        return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + number * 32)));
    }
};

// Inputs as integers of 16 bits: by group, their scale and their sum, which are NaN where an input is not finite.
struct Integers {
    std::vector<int16_t> values;
    std::vector<float> scales, sums;
};

void round_inputs(const Instruction& op, const Step& step, Integers& rounded) {
    const int64_t groups = op.size[1] / COLUMNS;
    rounded.values.resize(step.tokens * op.size[1]);
    rounded.scales.resize(step.tokens * groups);
    rounded.sums.resize(step.tokens * groups);
    for (int64_t token = 0; token < step.tokens; token++)
        for (int64_t group = 0; group < groups; group++) {
            const float* in = row(step, op.input, op.input_offset, token) + group * COLUMNS;
            int16_t* out = rounded.values.data() + token * op.size[1] + group * COLUMNS;
            const __m512 first = _mm512_loadu_ps(in), second = _mm512_loadu_ps(in + ROWS);
            const float largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(first), _mm512_abs_ps(second)));
            const __m512 factor = _mm512_set1_ps(largest > 1e-30f ? 32767.0f / largest : 0.0f);
            for (int half = 0; half < 2; half++) {
                const __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(half ? second : first, factor));
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + half * ROWS), _mm512_cvtsepi32_epi16(whole));
            }
            const float sum = _mm512_reduce_add_ps(_mm512_add_ps(first, second));
            rounded.scales[token * groups + group] = largest / 32767.0f + 0.0f * sum;
            rounded.sums[token * groups + group] = sum;
        }
}

inline __m512i both(const int16_t* columns) {
    int32_t two;
    std::memcpy(&two, columns, 4);
    return _mm512_set1_epi32(two);
}

// Some tokens and some tiles that follow each other. Four sums at least, since one waits for its last product.
template <class Bits, class Scale, int TOKENS, int TILES>
void multiply(const Instruction& op, const Step& step, const Integers& rounded, int64_t token, int64_t tile) {
    constexpr int64_t BYTES = Bits::BYTES + ROWS * Scale::BYTES * (1 + Bits::MINIMA);
    const int64_t groups = op.size[1] / COLUMNS;
    const uint8_t* weights = static_cast<const uint8_t*>(op.data[0]) + tile * groups * BYTES;
    const int16_t* in = rounded.values.data() + token * op.size[1];
    __m512 sums[TOKENS][TILES];
    for (auto& own : sums) std::fill_n(own, TILES, _mm512_setzero_ps());
    for (int64_t group = 0; group < groups; group++) {
        __m512i products[TOKENS][TILES];
        for (auto& own : products) std::fill_n(own, TILES, _mm512_setzero_si512());
#pragma GCC unroll 16
        for (int64_t number = 0; number < COLUMNS / 2; number++)
#pragma GCC unroll 4
            for (int t = 0; t < TILES; t++) {
                const __m512i pair = Bits::pair(weights + (t * groups + group) * BYTES, number);
#pragma GCC unroll 8
                for (int m = 0; m < TOKENS; m++) {
                    const int16_t* columns = in + m * op.size[1] + group * COLUMNS + 2 * number;
                    products[m][t] = _mm512_dpwssd_epi32(products[m][t], pair, both(columns));
                }
            }
        for (int t = 0; t < TILES; t++) {
            const uint8_t* scales = weights + (t * groups + group) * BYTES + Bits::BYTES;
            for (int m = 0; m < TOKENS; m++) {
                const __m512 scale = _mm512_mul_ps(
                    Scale::load(scales), _mm512_set1_ps(rounded.scales[(token + m) * groups + group]));
                sums[m][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[m][t]), scale, sums[m][t]);
                if (Bits::MINIMA) {
                    const __m512 sum = _mm512_set1_ps(rounded.sums[(token + m) * groups + group]);
                    sums[m][t] = _mm512_fmadd_ps(sum, Scale::load(scales + ROWS * Scale::BYTES), sums[m][t]);
                }
            }
        }
    }
    for (int m = 0; m < TOKENS; m++)
        for (int t = 0; t < TILES; t++) {
            float values[ROWS];
            _mm512_storeu_ps(values, sums[m][t]);
            const int64_t from = (tile + t) * ROWS;
            put(op, step, token + m, from, std::min(ROWS, op.size[0] - from), values);
        }
}

template <class Bits, class Scale, int TOKENS, int TILES>
void multiply_tiles(const Instruction& op, const Step& step, const Integers& rounded, int64_t token, int64_t tile,
                    int64_t end) {
    for (; tile + TILES <= end; tile += TILES) multiply<Bits, Scale, TOKENS, TILES>(op, step, rounded, token, tile);
    for (; tile < end; tile++) multiply<Bits, Scale, TOKENS, 1>(op, step, rounded, token, tile);
}

template <class Bits, class Scale>
void linear_few_bits(const Instruction& op, const Step& step) {
    constexpr int64_t AT_ONCE = 4;
    thread_local Integers kept;
    Integers& rounded = kept;
    round_inputs(op, step, rounded);
    const int64_t tiles = (op.size[0] + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(step.threads) if (step.threads > 1)
    for (int64_t tile = 0; tile < tiles; tile += AT_ONCE) {
        const int64_t end = std::min(tile + AT_ONCE, tiles);
        int64_t token = 0;
        for (; token + 8 <= step.tokens; token += 8) multiply_tiles<Bits, Scale, 8, 1>(op, step, rounded, token, tile, end);
        for (; token + 4 <= step.tokens; token += 4) multiply_tiles<Bits, Scale, 4, 1>(op, step, rounded, token, tile, end);
        for (; token < step.tokens; token++) multiply_tiles<Bits, Scale, 1, 4>(op, step, rounded, token, tile, end);
    }
}

}  // namespace

#endif
