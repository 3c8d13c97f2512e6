// The kernel table that any lanes make. Include after all other lane headers.
#pragma once

#include "tokenvm/entry.hpp"
#include "tokenvm/kernels.hpp"

namespace tokenvm {
namespace {

constexpr Kernels lane_kernels(const char* name) {
  return {.name = name,
          .prepare_rows = entry<widen_rows>,
          .linear_bf16 = entry<linear_bf16>,
          .linear_fp32 = entry<linear_fp32>,
          .attend_bf16 = entry<attend_page<DotBf16>>,
          .attend_fp32 = entry<attend_page<DotFp32>>,
          .walk_bf16 = nullptr,
          .fold = entry<fold>,
          .quantise = entry<quantise_head>,
          .dequantise = entry<dequantise_head>,
          .finish = entry<finish>,
          .rms_norm = entry<rms_norm>,
          .silu_mul = entry<silu_mul>,
          .gelu_mul = entry<gelu_mul>,
          .cast = entry<cast_row>,
          .rope = entry<rope>,
          .bitpack_encode = entry<bitpack_encode_lanes>,
          .bitpack_decode = entry<bitpack_decode_lanes>};
}

}  // namespace
}  // namespace tokenvm
