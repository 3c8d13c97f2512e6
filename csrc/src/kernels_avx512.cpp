// The kernel table for this instruction set: the shared sources over its lanes.
#include "tokenvm/lanes_avx512.hpp"
// The lanes come first.
#include "tokenvm/entry.hpp"
#include "tokenvm/lane_math.hpp"
// Then what is built on them.
#include "tokenvm/code_lanes.hpp"
#include "tokenvm/dot.hpp"
#include "tokenvm/lane_attention.hpp"
#include "tokenvm/lane_bitpack.hpp"
#include "tokenvm/lane_quantise.hpp"
#include "tokenvm/lane_rowwise.hpp"
#include "tokenvm/lane_epilogue.hpp"
#include "tokenvm/lane_linear.hpp"

namespace tokenvm {

const Kernels& avx512_kernels() {
  static constexpr Kernels table{.name = "avx512",
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
                                 .cast = entry<cast_row>,
                                 .rope = entry<rope>,
                                 .bitpack_encode = entry<bitpack_encode_lanes>,
                                 .bitpack_decode = entry<bitpack_decode_lanes>};
  return table;
}

}  // namespace tokenvm
