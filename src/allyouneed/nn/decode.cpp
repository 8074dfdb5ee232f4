// The layers of a decoder for a few tokens at a time, as a list of instructions that compiled.py writes.

#include <algorithm>
#include <cmath>
#include <vector>

#include "few_bits.h"
#include "linear.h"
#include "step.h"

namespace {

// Norms: size is {width, vectors of a token, theirs to step}; number is epsilon.

void rms_norm(const Instruction& op, const Step& step) {
    const int64_t width = op.size[0];
    const float* weight = static_cast<const float*>(op.data[0]);
    for (int64_t token = 0; token < step.tokens; token++)
        for (int64_t vector = 0; vector < op.size[1]; vector++) {
            const float* in = row(step, op.input, op.input_offset, token) + vector * width;
            float* out = row(step, op.output, op.output_offset, token) + vector * width;
            float squares = 0;
#pragma omp simd reduction(+ : squares)
            for (int64_t i = 0; i < width; i++) squares += in[i] * in[i];
            const float scale = 1.0f / std::sqrt(squares / width + static_cast<float>(op.number));
#pragma omp simd
            for (int64_t i = 0; i < width; i++) out[i] = in[i] * scale * weight[i];
        }
}

void layer_norm(const Instruction& op, const Step& step) {
    const int64_t width = op.size[0];
    const float *weight = static_cast<const float*>(op.data[0]), *bias = static_cast<const float*>(op.data[1]);
    for (int64_t token = 0; token < step.tokens; token++) {
        const float* in = row(step, op.input, op.input_offset, token);
        float* out = row(step, op.output, op.output_offset, token);
        float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; i++) sum += in[i];
        const float mean = sum / width;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < width; i++) squares += (in[i] - mean) * (in[i] - mean);
        const float scale = 1.0f / std::sqrt(squares / width + static_cast<float>(op.number));
#pragma omp simd
        for (int64_t i = 0; i < width; i++) out[i] = (in[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0.0f);
    }
}

// Attention: size is {heads, key-value heads, head width, layer}; the input has queries, keys and values side by side.

// Turn the first heads, which are those of queries and keys.
void rotate(const Instruction& op, const Step& step) {
    const int64_t width = op.size[2], half = step.rotated / 2;
    for (int64_t token = 0; token < step.tokens; token++) {
        const float *cosine = step.cosine + token * step.rotation_stride, *sine = step.sine + token * step.rotation_stride;
        for (int64_t head = 0; head < op.size[0] + op.size[1]; head++) {
            float* vector = row(step, op.input, op.input_offset, token) + head * width;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                const float first = vector[i], second = vector[half + i];
                vector[i] = first * cosine[i] - second * sine[i];
                vector[half + i] = second * cosine[half + i] + first * sine[half + i];
            }
        }
    }
}

// WIDTH is the head's width where it is a usual one, so that loops over it are unrolled, and 0 for any other.
template <int64_t WIDTH>
void attend_to_head(const Instruction& op, const Step& step, int64_t token, int64_t shared, float* scores) {
    const int64_t heads = op.size[0], key_value_heads = op.size[1], width = WIDTH ? WIDTH : op.size[2];
    const int64_t group = heads / key_value_heads, count = step.counts[token], size = step.block_size;
    const float *keys = step.keys[op.size[3]] + shared * step.head_stride;
    const float *values = step.values[op.size[3]] + shared * step.head_stride;
    const int64_t* blocks = step.blocks + token * step.most_blocks;
    const float scale = 1.0f / std::sqrt(static_cast<float>(width));
    for (int64_t own = 0; own < group; own++) {
        const int64_t head = shared * group + own;
        const float* query = row(step, op.input, op.input_offset, token) + head * width;
        float* out = row(step, op.output, op.output_offset, token) + head * width;
        for (int64_t place = 0; place < count; place++) {
            const float* key = keys + blocks[place / size] + place % size * width;
            float product = 0;
#pragma omp simd reduction(+ : product)
            for (int64_t i = 0; i < width; i++) product += query[i] * key[i];
            scores[place] = product * scale;
        }
        if (step.mask) {
            const float* mask = step.mask + token * step.mask_token_stride + head * step.mask_head_stride;
            for (int64_t place = 0; place < count; place++) scores[place] += mask[place];
        }
        float highest = scores[0], sum = 0;
#pragma omp simd reduction(max : highest)
        for (int64_t place = 0; place < count; place++) highest = scores[place] > highest ? scores[place] : highest;
#pragma omp simd reduction(+ : sum)
        for (int64_t place = 0; place < count; place++) sum += scores[place] = exponential(scores[place] - highest);
        std::fill_n(out, width, 0.0f);
        for (int64_t place = 0; place < count; place++) {
            const float* value = values + blocks[place / size] + place % size * width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) out[i] += scores[place] * value[i];
        }
        for (int64_t i = 0; i < width; i++) out[i] /= sum;
    }
}

void attend(const Instruction& op, const Step& step) {
    const int64_t heads = op.size[0], key_value_heads = op.size[1], width = op.size[2];
    int64_t longest = 0;
    for (int64_t token = 0; token < step.tokens; token++) {
        longest = std::max(longest, step.counts[token]);
        const int64_t last = step.counts[token] - 1;
        const int64_t at = step.blocks[token * step.most_blocks + last / step.block_size] + last % step.block_size * width;
        const float* key = row(step, op.input, op.input_offset, token) + heads * width;
        for (int64_t head = 0; head < key_value_heads; head++) {
            std::copy_n(key + head * width, width, step.keys[op.size[3]] + head * step.head_stride + at);
            std::copy_n(key + (key_value_heads + head) * width, width,
                        step.values[op.size[3]] + head * step.head_stride + at);
        }
    }
#pragma omp parallel for num_threads(step.threads) if (step.threads > 1)
    for (int64_t pair = 0; pair < step.tokens * key_value_heads; pair++) {
        thread_local std::vector<float> scores;
        scores.resize(std::max<size_t>(scores.size(), longest));
        const int64_t token = pair / key_value_heads, shared = pair % key_value_heads;
        if (width == 64) attend_to_head<64>(op, step, token, shared, scores.data());
        else if (width == 128) attend_to_head<128>(op, step, token, shared, scores.data());
        else attend_to_head<0>(op, step, token, shared, scores.data());
    }
}

// Activations: size is {width, activation, whether the input has a gate and then an inner vector}.

inline float silu(float x) { return x / (1.0f + exponential(-x)); }
inline float relu(float x) { return x < 0 ? 0.0f : x; }
inline float gelu(float x) { return 0.5f * x * (1.0f + std::erf(x * 0.707106781f)); }
inline float gelu_tanh(float x) {
    // (1 + tanh(y)) / 2 is 1 / (1 + exp(-2y)).
    return x / (1.0f + exponential(-1.59576912f * (x + 0.044715f * x * x * x)));
}

template <float (*FUNCTION)(float)>
void activate_by(const Instruction& op, const Step& step) {
    const int64_t width = op.size[0];
    for (int64_t token = 0; token < step.tokens; token++) {
        const float* in = row(step, op.input, op.input_offset, token);
        float* out = row(step, op.output, op.output_offset, token);
        if (op.size[2]) {
#pragma omp simd
            for (int64_t i = 0; i < width; i++) out[i] = FUNCTION(in[i]) * in[width + i];
        } else {
#pragma omp simd
            for (int64_t i = 0; i < width; i++) out[i] = FUNCTION(in[i]);
        }
    }
}

void activate(const Instruction& op, const Step& step) {
    constexpr void (*BY[])(const Instruction&, const Step&) = {activate_by<silu>, activate_by<relu>, activate_by<gelu>,
                                                              activate_by<gelu_tanh>};
    BY[op.size[1]](op, step);
}

}  // namespace

// Whether weights in few bits can be multiplied here.
extern "C" int64_t few_bits() {
#ifdef __AVX512VNNI__
    return 1;
#else
    return 0;
#endif
}

extern "C" void run(const Instruction* instructions, int64_t count, const Step* step) {
    constexpr void (*KINDS[])(const Instruction&, const Step&) = {
        rms_norm, layer_norm, linear<multiply_rows<4>, multiply_rows<1>>, linear<multiply_columns<4>, multiply_columns<1>>,
        rotate, attend, activate,
#ifdef __AVX512VNNI__
        linear_few_bits<Bits4, Half>, linear_few_bits<Bits4, Single>, linear_few_bits<Bits5, Half>,
        linear_few_bits<Bits8, Half>, linear_few_bits<Bits8, Single>,
#endif
    };
    for (int64_t number = 0; number < count; number++) {
        const Instruction& op = instructions[number];
        KINDS[op.kind](op, *step);
    }
}
