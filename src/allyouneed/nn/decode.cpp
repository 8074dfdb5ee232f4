// The layers of a decoder for a few tokens at a time, as a list of instructions that compiled.py writes.
//
// Weights in few bits are laid out in tiles of 16 rows and groups of 32 columns. A group of a tile holds the integers
// of two columns of all 16 rows side by side, then those of the next two, then each row's scale and, for 4 bits, minimum,
// in 16 bits where these hold them exactly. Inputs are rounded to integers of 16 bits, by group, and multiplied exactly;
// sums of groups are added in 32 bits. So little is rounded that would not be in 32 bits. Each token's groups are added
// in an order of their own, so that its result does not depend, to the last bit, on how many others there are.

#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int64_t ROWS = 16, COLUMNS = 32;

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

// Linear layers: size is {rows, columns, whether to add to the output}; data are weights and bias.

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

#ifdef __AVX512VNNI__

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

#endif

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
