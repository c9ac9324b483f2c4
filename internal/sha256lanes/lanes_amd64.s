#include "textflag.h"

// The hash's words a to h, of all sixteen lanes each.
#define A Z0
#define B Z1
#define C Z2
#define D Z3
#define E Z4
#define F Z5
#define G Z6
#define H Z7

// ROUND is one round of FIPS 180-4, 6.2.2, with word w of the message schedule and constant i. Instead of
// moving the eight words on by one, the next round names them so: its a is this one's h. VPTERNLOGD is a
// truth table: 0x96 a sum without carry, 0xca the choice e ? f : g, 0xe8 the majority of three.
#define ROUND(a, b, c, d, e, f, g, h, w, i) \
	VPRORD     $6, e, Z8             \
	VPRORD     $11, e, Z9            \
	VPRORD     $25, e, Z10           \
	VPTERNLOGD $0x96, Z8, Z9, Z10    \
	VMOVDQA32  e, Z11                \
	VPTERNLOGD $0xca, g, f, Z11      \
	VPADDD     w, h, h               \
	VPADDD.BCST k<>+(4*i)(SB), h, h  \
	VPADDD     Z10, h, h             \
	VPADDD     Z11, h, h             \
	VPADDD     h, d, d               \
	VPRORD     $2, a, Z12            \
	VPRORD     $13, a, Z13           \
	VPRORD     $22, a, Z14           \
	VPTERNLOGD $0x96, Z12, Z13, Z14  \
	VMOVDQA32  a, Z15                \
	VPTERNLOGD $0xe8, c, b, Z15      \
	VPADDD     Z14, h, h             \
	VPADDD     Z15, h, h

// SCHEDULE turns word w0 of the message schedule into the one 16 after it; the others are those 1, 9 and
// 14 after it.
#define SCHEDULE(w0, w1, w9, w14) \
	VPRORD     $7, w1, Z8            \
	VPRORD     $18, w1, Z9           \
	VPSRLD     $3, w1, Z10           \
	VPTERNLOGD $0x96, Z8, Z9, Z10    \
	VPRORD     $17, w14, Z11         \
	VPRORD     $19, w14, Z12         \
	VPSRLD     $10, w14, Z13         \
	VPTERNLOGD $0x96, Z11, Z12, Z13  \
	VPADDD     w9, w0, w0            \
	VPADDD     Z10, w0, w0           \
	VPADDD     Z13, w0, w0

// LOAD reads the next block of lane l.
#define LOAD(l, z) \
	MOVQ      (8*l)(SI), AX \
	VMOVDQU32 (AX)(DX*1), z

// The steps that transpose 16 x 16 words: pairs of words of two rows, of two pairs, and 128 bits at a time.
#define WORDS(x, y, low, high) \
	VPUNPCKLDQ y, x, low \
	VPUNPCKHDQ y, x, high
#define PAIRS(x, y, low, high) \
	VPUNPCKLQDQ y, x, low \
	VPUNPCKHQDQ y, x, high
#define QUARTERS(x, y, even, odd) \
	VSHUFI32X4 $0x88, y, x, even \
	VSHUFI32X4 $0xdd, y, x, odd

// ADD adds what a word of the hash was before the block.
#define ADD(w, z) \
	VPADDD    (64*w)(DI), z, z \
	VMOVDQU32 z, (64*w)(DI)

// func compress(s *state, at *[lanes]*byte, blocks int)
TEXT ·compress(SB), NOSPLIT, $0-24
	MOVQ s+0(FP), DI
	MOVQ at+8(FP), SI
	MOVQ blocks+16(FP), CX
	XORQ DX, DX

loop:
	// Word j of all lanes' blocks goes to register 16+j.
	LOAD(0, Z16)
	LOAD(1, Z17)
	LOAD(2, Z18)
	LOAD(3, Z19)
	LOAD(4, Z20)
	LOAD(5, Z21)
	LOAD(6, Z22)
	LOAD(7, Z23)
	LOAD(8, Z24)
	LOAD(9, Z25)
	LOAD(10, Z26)
	LOAD(11, Z27)
	LOAD(12, Z28)
	LOAD(13, Z29)
	LOAD(14, Z30)
	LOAD(15, Z31)

	WORDS(Z16, Z17, Z0, Z1)
	WORDS(Z18, Z19, Z2, Z3)
	WORDS(Z20, Z21, Z4, Z5)
	WORDS(Z22, Z23, Z6, Z7)
	WORDS(Z24, Z25, Z8, Z9)
	WORDS(Z26, Z27, Z10, Z11)
	WORDS(Z28, Z29, Z12, Z13)
	WORDS(Z30, Z31, Z14, Z15)

	PAIRS(Z0, Z2, Z16, Z17)
	PAIRS(Z1, Z3, Z18, Z19)
	PAIRS(Z4, Z6, Z20, Z21)
	PAIRS(Z5, Z7, Z22, Z23)
	PAIRS(Z8, Z10, Z24, Z25)
	PAIRS(Z9, Z11, Z26, Z27)
	PAIRS(Z12, Z14, Z28, Z29)
	PAIRS(Z13, Z15, Z30, Z31)

	QUARTERS(Z16, Z20, Z0, Z1)
	QUARTERS(Z24, Z28, Z2, Z3)
	QUARTERS(Z17, Z21, Z4, Z5)
	QUARTERS(Z25, Z29, Z6, Z7)
	QUARTERS(Z18, Z22, Z8, Z9)
	QUARTERS(Z26, Z30, Z10, Z11)
	QUARTERS(Z19, Z23, Z12, Z13)
	QUARTERS(Z27, Z31, Z14, Z15)

	QUARTERS(Z0, Z2, Z16, Z24)
	QUARTERS(Z1, Z3, Z20, Z28)
	QUARTERS(Z4, Z6, Z17, Z25)
	QUARTERS(Z5, Z7, Z21, Z29)
	QUARTERS(Z8, Z10, Z18, Z26)
	QUARTERS(Z9, Z11, Z22, Z30)
	QUARTERS(Z12, Z14, Z19, Z27)
	QUARTERS(Z13, Z15, Z23, Z31)

	VBROADCASTI32X4 flip<>(SB), Z8
	VPSHUFB Z8, Z16, Z16
	VPSHUFB Z8, Z17, Z17
	VPSHUFB Z8, Z18, Z18
	VPSHUFB Z8, Z19, Z19
	VPSHUFB Z8, Z20, Z20
	VPSHUFB Z8, Z21, Z21
	VPSHUFB Z8, Z22, Z22
	VPSHUFB Z8, Z23, Z23
	VPSHUFB Z8, Z24, Z24
	VPSHUFB Z8, Z25, Z25
	VPSHUFB Z8, Z26, Z26
	VPSHUFB Z8, Z27, Z27
	VPSHUFB Z8, Z28, Z28
	VPSHUFB Z8, Z29, Z29
	VPSHUFB Z8, Z30, Z30
	VPSHUFB Z8, Z31, Z31

	VMOVDQU32 0(DI), A
	VMOVDQU32 64(DI), B
	VMOVDQU32 128(DI), C
	VMOVDQU32 192(DI), D
	VMOVDQU32 256(DI), E
	VMOVDQU32 320(DI), F
	VMOVDQU32 384(DI), G
	VMOVDQU32 448(DI), H

	ROUND(A, B, C, D, E, F, G, H, Z16, 0)
	ROUND(H, A, B, C, D, E, F, G, Z17, 1)
	ROUND(G, H, A, B, C, D, E, F, Z18, 2)
	ROUND(F, G, H, A, B, C, D, E, Z19, 3)
	ROUND(E, F, G, H, A, B, C, D, Z20, 4)
	ROUND(D, E, F, G, H, A, B, C, Z21, 5)
	ROUND(C, D, E, F, G, H, A, B, Z22, 6)
	ROUND(B, C, D, E, F, G, H, A, Z23, 7)
	ROUND(A, B, C, D, E, F, G, H, Z24, 8)
	ROUND(H, A, B, C, D, E, F, G, Z25, 9)
	ROUND(G, H, A, B, C, D, E, F, Z26, 10)
	ROUND(F, G, H, A, B, C, D, E, Z27, 11)
	ROUND(E, F, G, H, A, B, C, D, Z28, 12)
	ROUND(D, E, F, G, H, A, B, C, Z29, 13)
	ROUND(C, D, E, F, G, H, A, B, Z30, 14)
	ROUND(B, C, D, E, F, G, H, A, Z31, 15)
	SCHEDULE(Z16, Z17, Z25, Z30)
	ROUND(A, B, C, D, E, F, G, H, Z16, 16)
	SCHEDULE(Z17, Z18, Z26, Z31)
	ROUND(H, A, B, C, D, E, F, G, Z17, 17)
	SCHEDULE(Z18, Z19, Z27, Z16)
	ROUND(G, H, A, B, C, D, E, F, Z18, 18)
	SCHEDULE(Z19, Z20, Z28, Z17)
	ROUND(F, G, H, A, B, C, D, E, Z19, 19)
	SCHEDULE(Z20, Z21, Z29, Z18)
	ROUND(E, F, G, H, A, B, C, D, Z20, 20)
	SCHEDULE(Z21, Z22, Z30, Z19)
	ROUND(D, E, F, G, H, A, B, C, Z21, 21)
	SCHEDULE(Z22, Z23, Z31, Z20)
	ROUND(C, D, E, F, G, H, A, B, Z22, 22)
	SCHEDULE(Z23, Z24, Z16, Z21)
	ROUND(B, C, D, E, F, G, H, A, Z23, 23)
	SCHEDULE(Z24, Z25, Z17, Z22)
	ROUND(A, B, C, D, E, F, G, H, Z24, 24)
	SCHEDULE(Z25, Z26, Z18, Z23)
	ROUND(H, A, B, C, D, E, F, G, Z25, 25)
	SCHEDULE(Z26, Z27, Z19, Z24)
	ROUND(G, H, A, B, C, D, E, F, Z26, 26)
	SCHEDULE(Z27, Z28, Z20, Z25)
	ROUND(F, G, H, A, B, C, D, E, Z27, 27)
	SCHEDULE(Z28, Z29, Z21, Z26)
	ROUND(E, F, G, H, A, B, C, D, Z28, 28)
	SCHEDULE(Z29, Z30, Z22, Z27)
	ROUND(D, E, F, G, H, A, B, C, Z29, 29)
	SCHEDULE(Z30, Z31, Z23, Z28)
	ROUND(C, D, E, F, G, H, A, B, Z30, 30)
	SCHEDULE(Z31, Z16, Z24, Z29)
	ROUND(B, C, D, E, F, G, H, A, Z31, 31)
	SCHEDULE(Z16, Z17, Z25, Z30)
	ROUND(A, B, C, D, E, F, G, H, Z16, 32)
	SCHEDULE(Z17, Z18, Z26, Z31)
	ROUND(H, A, B, C, D, E, F, G, Z17, 33)
	SCHEDULE(Z18, Z19, Z27, Z16)
	ROUND(G, H, A, B, C, D, E, F, Z18, 34)
	SCHEDULE(Z19, Z20, Z28, Z17)
	ROUND(F, G, H, A, B, C, D, E, Z19, 35)
	SCHEDULE(Z20, Z21, Z29, Z18)
	ROUND(E, F, G, H, A, B, C, D, Z20, 36)
	SCHEDULE(Z21, Z22, Z30, Z19)
	ROUND(D, E, F, G, H, A, B, C, Z21, 37)
	SCHEDULE(Z22, Z23, Z31, Z20)
	ROUND(C, D, E, F, G, H, A, B, Z22, 38)
	SCHEDULE(Z23, Z24, Z16, Z21)
	ROUND(B, C, D, E, F, G, H, A, Z23, 39)
	SCHEDULE(Z24, Z25, Z17, Z22)
	ROUND(A, B, C, D, E, F, G, H, Z24, 40)
	SCHEDULE(Z25, Z26, Z18, Z23)
	ROUND(H, A, B, C, D, E, F, G, Z25, 41)
	SCHEDULE(Z26, Z27, Z19, Z24)
	ROUND(G, H, A, B, C, D, E, F, Z26, 42)
	SCHEDULE(Z27, Z28, Z20, Z25)
	ROUND(F, G, H, A, B, C, D, E, Z27, 43)
	SCHEDULE(Z28, Z29, Z21, Z26)
	ROUND(E, F, G, H, A, B, C, D, Z28, 44)
	SCHEDULE(Z29, Z30, Z22, Z27)
	ROUND(D, E, F, G, H, A, B, C, Z29, 45)
	SCHEDULE(Z30, Z31, Z23, Z28)
	ROUND(C, D, E, F, G, H, A, B, Z30, 46)
	SCHEDULE(Z31, Z16, Z24, Z29)
	ROUND(B, C, D, E, F, G, H, A, Z31, 47)
	SCHEDULE(Z16, Z17, Z25, Z30)
	ROUND(A, B, C, D, E, F, G, H, Z16, 48)
	SCHEDULE(Z17, Z18, Z26, Z31)
	ROUND(H, A, B, C, D, E, F, G, Z17, 49)
	SCHEDULE(Z18, Z19, Z27, Z16)
	ROUND(G, H, A, B, C, D, E, F, Z18, 50)
	SCHEDULE(Z19, Z20, Z28, Z17)
	ROUND(F, G, H, A, B, C, D, E, Z19, 51)
	SCHEDULE(Z20, Z21, Z29, Z18)
	ROUND(E, F, G, H, A, B, C, D, Z20, 52)
	SCHEDULE(Z21, Z22, Z30, Z19)
	ROUND(D, E, F, G, H, A, B, C, Z21, 53)
	SCHEDULE(Z22, Z23, Z31, Z20)
	ROUND(C, D, E, F, G, H, A, B, Z22, 54)
	SCHEDULE(Z23, Z24, Z16, Z21)
	ROUND(B, C, D, E, F, G, H, A, Z23, 55)
	SCHEDULE(Z24, Z25, Z17, Z22)
	ROUND(A, B, C, D, E, F, G, H, Z24, 56)
	SCHEDULE(Z25, Z26, Z18, Z23)
	ROUND(H, A, B, C, D, E, F, G, Z25, 57)
	SCHEDULE(Z26, Z27, Z19, Z24)
	ROUND(G, H, A, B, C, D, E, F, Z26, 58)
	SCHEDULE(Z27, Z28, Z20, Z25)
	ROUND(F, G, H, A, B, C, D, E, Z27, 59)
	SCHEDULE(Z28, Z29, Z21, Z26)
	ROUND(E, F, G, H, A, B, C, D, Z28, 60)
	SCHEDULE(Z29, Z30, Z22, Z27)
	ROUND(D, E, F, G, H, A, B, C, Z29, 61)
	SCHEDULE(Z30, Z31, Z23, Z28)
	ROUND(C, D, E, F, G, H, A, B, Z30, 62)
	SCHEDULE(Z31, Z16, Z24, Z29)
	ROUND(B, C, D, E, F, G, H, A, Z31, 63)

	ADD(0, A)
	ADD(1, B)
	ADD(2, C)
	ADD(3, D)
	ADD(4, E)
	ADD(5, F)
	ADD(6, G)
	ADD(7, H)

	ADDQ $64, DX
	DECQ CX
	JNZ  loop
	VZEROUPPER
	RET

// The bytes of 16 in the order that makes four big-endian words of them.
DATA flip<>+0x00(SB)/8, $0x0405060700010203
DATA flip<>+0x08(SB)/8, $0x0c0d0e0f08090a0b
GLOBL flip<>(SB), RODATA|NOPTR, $16

// The constants of FIPS 180-4, 4.2.2.
DATA k<>+0x000(SB)/4, $0x428a2f98
DATA k<>+0x004(SB)/4, $0x71374491
DATA k<>+0x008(SB)/4, $0xb5c0fbcf
DATA k<>+0x00c(SB)/4, $0xe9b5dba5
DATA k<>+0x010(SB)/4, $0x3956c25b
DATA k<>+0x014(SB)/4, $0x59f111f1
DATA k<>+0x018(SB)/4, $0x923f82a4
DATA k<>+0x01c(SB)/4, $0xab1c5ed5
DATA k<>+0x020(SB)/4, $0xd807aa98
DATA k<>+0x024(SB)/4, $0x12835b01
DATA k<>+0x028(SB)/4, $0x243185be
DATA k<>+0x02c(SB)/4, $0x550c7dc3
DATA k<>+0x030(SB)/4, $0x72be5d74
DATA k<>+0x034(SB)/4, $0x80deb1fe
DATA k<>+0x038(SB)/4, $0x9bdc06a7
DATA k<>+0x03c(SB)/4, $0xc19bf174
DATA k<>+0x040(SB)/4, $0xe49b69c1
DATA k<>+0x044(SB)/4, $0xefbe4786
DATA k<>+0x048(SB)/4, $0x0fc19dc6
DATA k<>+0x04c(SB)/4, $0x240ca1cc
DATA k<>+0x050(SB)/4, $0x2de92c6f
DATA k<>+0x054(SB)/4, $0x4a7484aa
DATA k<>+0x058(SB)/4, $0x5cb0a9dc
DATA k<>+0x05c(SB)/4, $0x76f988da
DATA k<>+0x060(SB)/4, $0x983e5152
DATA k<>+0x064(SB)/4, $0xa831c66d
DATA k<>+0x068(SB)/4, $0xb00327c8
DATA k<>+0x06c(SB)/4, $0xbf597fc7
DATA k<>+0x070(SB)/4, $0xc6e00bf3
DATA k<>+0x074(SB)/4, $0xd5a79147
DATA k<>+0x078(SB)/4, $0x06ca6351
DATA k<>+0x07c(SB)/4, $0x14292967
DATA k<>+0x080(SB)/4, $0x27b70a85
DATA k<>+0x084(SB)/4, $0x2e1b2138
DATA k<>+0x088(SB)/4, $0x4d2c6dfc
DATA k<>+0x08c(SB)/4, $0x53380d13
DATA k<>+0x090(SB)/4, $0x650a7354
DATA k<>+0x094(SB)/4, $0x766a0abb
DATA k<>+0x098(SB)/4, $0x81c2c92e
DATA k<>+0x09c(SB)/4, $0x92722c85
DATA k<>+0x0a0(SB)/4, $0xa2bfe8a1
DATA k<>+0x0a4(SB)/4, $0xa81a664b
DATA k<>+0x0a8(SB)/4, $0xc24b8b70
DATA k<>+0x0ac(SB)/4, $0xc76c51a3
DATA k<>+0x0b0(SB)/4, $0xd192e819
DATA k<>+0x0b4(SB)/4, $0xd6990624
DATA k<>+0x0b8(SB)/4, $0xf40e3585
DATA k<>+0x0bc(SB)/4, $0x106aa070
DATA k<>+0x0c0(SB)/4, $0x19a4c116
DATA k<>+0x0c4(SB)/4, $0x1e376c08
DATA k<>+0x0c8(SB)/4, $0x2748774c
DATA k<>+0x0cc(SB)/4, $0x34b0bcb5
DATA k<>+0x0d0(SB)/4, $0x391c0cb3
DATA k<>+0x0d4(SB)/4, $0x4ed8aa4a
DATA k<>+0x0d8(SB)/4, $0x5b9cca4f
DATA k<>+0x0dc(SB)/4, $0x682e6ff3
DATA k<>+0x0e0(SB)/4, $0x748f82ee
DATA k<>+0x0e4(SB)/4, $0x78a5636f
DATA k<>+0x0e8(SB)/4, $0x84c87814
DATA k<>+0x0ec(SB)/4, $0x8cc70208
DATA k<>+0x0f0(SB)/4, $0x90befffa
DATA k<>+0x0f4(SB)/4, $0xa4506ceb
DATA k<>+0x0f8(SB)/4, $0xbef9a3f7
DATA k<>+0x0fc(SB)/4, $0xc67178f2
GLOBL k<>(SB), RODATA|NOPTR, $256
