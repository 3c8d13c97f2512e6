// The kernel table for this instruction set: the shared sources over its lanes.
#include "tokenvm/lanes_portable.hpp"
// The lanes come first.
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

const Kernels& portable_kernels() {
  static constexpr Kernels table{.name = "portable",
                                 .prepare_rows = widen_rows,
                                 .linear_bf16 = linear_bf16,
                                 .linear_fp32 = linear_fp32,
                                 .attend_bf16 = attend_page<DotBf16>,
                                 .attend_fp32 = attend_page<DotFp32>,
                                 .walk_bf16 = nullptr,
                                 .fold = fold,
                                 .quantise = quantise_head,
                                 .dequantise = dequantise_head,
                                 .finish = finish,
                                 .rms_norm = rms_norm,
                                 .silu_mul = silu_mul,
                                 .cast = cast_row,
                                 .rope = rope,
                                 .bitpack_encode = bitpack_encode_lanes,
                                 .bitpack_decode = bitpack_decode_lanes};
  return table;
}

}  // namespace tokenvm
