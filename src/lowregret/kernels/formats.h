// Number formats and functions that the compiled pieces share: what is stored is fp32 or bf16, arithmetic is fp32.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct bf16 {
    uint16_t bits;
};

inline float load(float value) { return value; }

inline float load(bf16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

inline void store(float *at, float value) { *at = value; }

// Nearest, ties to even; a NaN whose payload would be cut off stays a NaN.
inline void store(bf16 *at, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    at->bits = uint16_t(value != value ? 0x7fc0 : rounded);
}

// exp to about 2 units in the last place, vectorised; from exp(-87.3), the smallest normal number, to exp(88.3).
// 2^n with n = round(x log2 e), times a polynomial in the rest (the minimax coefficients of Cephes' expf).
inline float exponential(float x) {
    x = x < -87.3f ? -87.3f : x;  // a NaN fails both comparisons and stays
    x = x > 88.3f ? 88.3f : x;
    float n = std::nearbyintf(x * 1.44269504f);
    float rest = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * rest + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.0f;
    int32_t power = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    return p * scale;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

}  // namespace
