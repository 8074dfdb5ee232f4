// What every operation is given: an instruction, and a step with its buffers.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct Buffer {  // A vector for each token.
    float* at;
    int64_t stride;
};

struct Instruction {
    int64_t kind;
    int64_t input, input_offset, output, output_offset;  // A buffer's number; floats after a token's first.
    int64_t size[4];
    const void* data[2];
    double number;
};

struct Step {
    int64_t tokens, threads;
    const Buffer* buffers;
    const float *cosine, *sine;  // Of each token's angles.
    int64_t rotated, rotation_stride;
    float **keys, **values;  // Of each layer.
    int64_t head_stride, block_size;
    const int64_t *blocks, *counts;  // Where each token's blocks of keys begin; how many keys it looks at, its own last.
    int64_t most_blocks;
    const float* mask;  // Added to the scores, or null.
    int64_t mask_token_stride, mask_head_stride;
};

float* row(const Step& step, int64_t buffer, int64_t offset, int64_t token) {
    return step.buffers[buffer].at + token * step.buffers[buffer].stride + offset;
}

// exp, in 32 bits, good to 2 units in the last place. Below -87 it is 0; NaN stays NaN.
inline float exponential(float x) {
    float bounded = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    float whole = std::rint(bounded * 1.44269504f);
    float rest = std::fma(whole, -0.693145752f, bounded);
    rest = std::fma(whole, -1.42860677e-6f, rest);
    float sum = 1.0f / 5040;
    for (float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = std::fma(sum, rest, factor);
    int32_t bits = (static_cast<int32_t>(whole) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return x < -87.0f ? 0.0f : sum * power;
}

}  // namespace
