// Linear layers: size is {rows, columns, whether to add to the output}; data are weights and bias.

#pragma once

#include <algorithm>

#include "step.h"

namespace {

inline void put(const Instruction& op, const Step& step, int64_t token, int64_t from, int64_t count, const float* sums) {
    float* out = row(step, op.output, op.output_offset, token) + from;
    const float* bias = static_cast<const float*>(op.data[1]);
    for (int64_t i = 0; i < count; i++) {
        const float value = sums[i] + (bias ? bias[from + i] : 0.0f);
        out[i] = op.size[2] ? out[i] + value : value;
    }
}

// Weights in 32 bits: LANES of a row at a time where rows are contiguous, LANES rows where columns are.

constexpr int64_t LANES = 16, ROWS_AT_ONCE = 64;
typedef float Floats __attribute__((vector_size(4 * LANES)));

inline Floats load(const float* at) {
    Floats loaded;
    std::memcpy(&loaded, at, sizeof loaded);
    return loaded;
}

inline float total(const Floats& sums) {
    float halves[LANES];
    std::memcpy(halves, &sums, sizeof halves);
    for (int64_t half = LANES / 2; half; half /= 2)
        for (int64_t i = 0; i < half; i++) halves[i] += halves[i + half];
    return halves[0];
}

template <int TOKENS>
void multiply_rows(const Instruction& op, const Step& step, int64_t token, int64_t from, int64_t end) {
    constexpr int64_t SOME = 4;
    const int64_t columns = op.size[1], whole = columns / LANES * LANES;
    const float* in[TOKENS];
    for (int m = 0; m < TOKENS; m++) in[m] = row(step, op.input, op.input_offset, token + m);
    for (; from < end; from += SOME) {
        const int64_t count = std::min(SOME, end - from);
        const float* weights[SOME];  // Of the last few rows some are read twice.
        for (int64_t i = 0; i < SOME; i++)
            weights[i] = static_cast<const float*>(op.data[0]) + (from + std::min(i, count - 1)) * columns;
        Floats sums[TOKENS][SOME] = {};
        for (int64_t j = 0; j < whole; j += LANES)
#pragma GCC unroll 4
            for (int m = 0; m < TOKENS; m++) {
                const Floats inputs = load(in[m] + j);
#pragma GCC unroll 4
                for (int64_t i = 0; i < SOME; i++) sums[m][i] += inputs * load(weights[i] + j);
            }
        for (int m = 0; m < TOKENS; m++) {
            float totals[SOME];
            for (int64_t i = 0; i < count; i++) {
                totals[i] = total(sums[m][i]);
                for (int64_t j = whole; j < columns; j++) totals[i] += in[m][j] * weights[i][j];
            }
            put(op, step, token + m, from, count, totals);
        }
    }
}

template <int TOKENS>
void multiply_columns(const Instruction& op, const Step& step, int64_t token, int64_t from, int64_t end) {
    constexpr int64_t SOME = ROWS_AT_ONCE / LANES;
    const int64_t rows = op.size[0];
    const float* in[TOKENS];
    for (int m = 0; m < TOKENS; m++) in[m] = row(step, op.input, op.input_offset, token + m);
    const float* weights = static_cast<const float*>(op.data[0]) + from;
    float totals[TOKENS][ROWS_AT_ONCE] = {};
    if (end - from == ROWS_AT_ONCE) {
        Floats sums[TOKENS][SOME] = {};
        for (int64_t j = 0; j < op.size[1]; j++) {
            Floats own[SOME];
#pragma GCC unroll 4
            for (int64_t i = 0; i < SOME; i++) own[i] = load(weights + j * rows + i * LANES);
#pragma GCC unroll 4
            for (int m = 0; m < TOKENS; m++)
#pragma GCC unroll 4
                for (int64_t i = 0; i < SOME; i++) sums[m][i] += own[i] * in[m][j];
        }
        std::memcpy(totals, sums, sizeof totals);
    } else {
        for (int m = 0; m < TOKENS; m++)
            for (int64_t j = 0; j < op.size[1]; j++)
                for (int64_t i = 0; i < end - from; i++) totals[m][i] += weights[j * rows + i] * in[m][j];
    }
    for (int m = 0; m < TOKENS; m++) put(op, step, token + m, from, end - from, totals[m]);
}

using Multiply = void(const Instruction&, const Step&, int64_t token, int64_t from, int64_t end);

template <Multiply FOUR, Multiply ONE>
void linear(const Instruction& op, const Step& step) {
#pragma omp parallel for num_threads(step.threads) if (step.threads > 1)
    for (int64_t from = 0; from < op.size[0]; from += ROWS_AT_ONCE) {
        const int64_t end = std::min(from + ROWS_AT_ONCE, op.size[0]);
        int64_t token = 0;
        for (; token + 4 <= step.tokens; token += 4) FOUR(op, step, token, from, end);
        for (; token < step.tokens; token++) ONE(op, step, token, from, end);
    }
}

}  // namespace
