package sha256lanes

import "github.com/klauspost/cpuid/v2"

// wide says that processor and kernel have what compress needs.
var wide = cpuid.CPU.Supports(cpuid.AVX512F, cpuid.AVX512BW)

// compress adds the given number of blocks, more than 0, of each lane's message to its state.
//
//go:noescape
func compress(s *state, at *[lanes]*byte, blocks int)
