// What an optimizer's step does to all weights, one pass over memory each: their norm, AdamW, the stochastic copy, and
// the sum of gradients.
//
// Memory is what these take: with torch's operations a full fine-tuning spent as long in them as in its products. Each
// element is computed by itself, and the norm over pieces of fixed size, so that numbers don't depend on the threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "formats.h"

namespace {

constexpr int64_t PIECE = 1 << 15;  // elements that one thread takes at a time
constexpr int64_t DRAWN = 1 << 9;   // words of random bits that are made at a time, and read while they are near

}  // namespace

// Sum of squares, in fp64.
extern "C" double squares_fp32(const float *x, int64_t number) {
    int64_t pieces = (number + PIECE - 1) / PIECE;
    std::vector<double> sums(pieces);
#pragma omp parallel for if (pieces > 1)
    for (int64_t piece = 0; piece < pieces; piece++) {
        double sum = 0.0;
        int64_t stop = std::min(number, (piece + 1) * PIECE);
#pragma omp simd reduction(+ : sum)
        for (int64_t i = piece * PIECE; i < stop; i++) sum += double(x[i]) * double(x[i]);
        sums[piece] = sum;
    }
    double total = 0.0;
    for (double sum : sums) total += sum;
    return total;
}

// `fresh` are 1 - beta, `decay` is the factor on the weight, `rate` the learning rate over the first moment's correction.
// With eps 0 a weight whose second moment is zero stays where it is. Returns whether every weight is within `bound` now.
extern "C" int64_t adamw_fp32(float *value, const float *grad, float *first, float *second, int64_t number, float scale,
                              float decay, float fresh1, float beta2, float fresh2, float rate, float correction2,
                              float eps, float bound) {
    int64_t pieces = (number + PIECE - 1) / PIECE;
    int outside = 0;
#pragma omp parallel for reduction(| : outside) if (pieces > 1)
    for (int64_t piece = 0; piece < pieces; piece++) {
        int64_t stop = std::min(number, (piece + 1) * PIECE);
#pragma omp simd reduction(| : outside)
        for (int64_t i = piece * PIECE; i < stop; i++) {
            float g = grad[i] * scale;
            float m = first[i] + (g - first[i]) * fresh1, v = second[i] * beta2 + g * g * fresh2;
            float below = std::sqrt(v) / correction2 + eps;
            below = below == 0.0f ? 1.0f : below;
            float moved = value[i] * decay - rate * (m / below);
            outside |= !(std::fabs(moved) < bound);  // so is a NaN
            value[i] = moved;
            first[i] = m;
            second[i] = v;
        }
    }
    return !outside;
}

// Word i of a stream: SplitMix64 (Steele, Lea and Flood, 2014), which can be had at any place by itself.
static inline uint64_t word(uint64_t seed, uint64_t place) {
    uint64_t z = seed + (place + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

// fp32 to bf16, up or down at random with the mean kept: element 4 i + j takes the j-th 16 bits of word i.
extern "C" void stochastic_bf16(const float *value, uint16_t *out, int64_t number, uint64_t seed) {
    int64_t words = (number + 3) / 4;
#pragma omp parallel for if (number > PIECE)
    for (int64_t from = 0; from < words; from += DRAWN) {
        int64_t stop = std::min(words, from + DRAWN);
        uint64_t drawn[DRAWN];
#pragma omp simd
        for (int64_t place = from; place < stop; place++) drawn[place - from] = word(seed, uint64_t(place));
        uint16_t noise[4 * DRAWN];
        std::memcpy(noise, drawn, (stop - from) * sizeof(uint64_t));
        int64_t first = from * 4, last = std::min(number, stop * 4);
#pragma omp simd
        for (int64_t i = first; i < last; i++) {
            uint32_t bits;
            std::memcpy(&bits, value + i, 4);
            uint32_t rounded = (bits + noise[i - first]) >> 16;
            uint32_t special = (bits & 0x7fffff) ? 0x7fc0u : bits >> 16;  // a NaN, or an infinity as it is
            out[i] = uint16_t((bits & 0x7f800000) == 0x7f800000 ? special : rounded);
        }
    }
}

extern "C" void add_bf16(float *sum, const bf16 *x, int64_t number) {
#pragma omp parallel for simd if (number > PIECE)
    for (int64_t i = 0; i < number; i++) sum[i] += load(x[i]);
}
