@ Register tiles of 1 to 4 rows and 1 or 2 vectors for NEON of 32-bit ARM.
@
@ Sums lie in q8 to q15, in rows. What the next step multiplies is loaded while this one does:
@ many cores of this kind run in order. q4 to q7 belong to the caller.

        .syntax unified
        .fpu    neon
        .arm
        .text

@ A step of all rows: vectors x and y times one number for each row.
        .macro  multiply rows, vectors, x, y, first, second, third, fourth
        .if \vectors == 2
        vmla.f32 q8, \x, \first
        vmla.f32 q9, \y, \first
        .if \rows > 1
        vmla.f32 q10, \x, \second
        vmla.f32 q11, \y, \second
        .endif
        .if \rows > 2
        vmla.f32 q12, \x, \third
        vmla.f32 q13, \y, \third
        .endif
        .if \rows > 3
        vmla.f32 q14, \x, \fourth
        vmla.f32 q15, \y, \fourth
        .endif
        .else
        vmla.f32 q8, \x, \first
        .if \rows > 1
        vmla.f32 q9, \x, \second
        .endif
        .if \rows > 2
        vmla.f32 q10, \x, \third
        .endif
        .if \rows > 3
        vmla.f32 q11, \x, \fourth
        .endif
        .endif
        .endm

        .macro  clear_sums
        vmov.i32 q8, #0
        vmov.i32 q9, #0
        vmov.i32 q10, #0
        vmov.i32 q11, #0
        vmov.i32 q12, #0
        vmov.i32 q13, #0
        vmov.i32 q14, #0
        vmov.i32 q15, #0
        .endm

        .macro  function name
        .global \name
        .hidden \name
        .type   \name, %function
        .p2align 4
\name:
        .endm

@ ---- outputs(r0: *const OutputsCall, r1: *mut Sums)
@ r2, r3: taps and their end; r4: step of sources; r5: step of weights behind a load of them;
@ r6, r7: sources; r8: weights; r9: channels that are left.

@ One channel: inputs into x and y, weights of the rows into w and v.
        .macro  load_channel rows, vectors, x, y, w, v
        vld1.32 {\x}, [r6], r4
        .if \vectors == 2
        vld1.32 {\y}, [r7], r4
        .endif
        .if \rows == 4
        vld1.32 {\w, \v}, [r8], r5
        .elseif \rows == 3
        vld1.32 {\w}, [r8]!
        vld1.32 {\v[0]}, [r8], r5
        .elseif \rows == 2
        vld1.32 {\w}, [r8], r5
        .else
        vld1.32 {\w[0]}, [r8], r5
        .endif
        .endm

        .macro  outputs name, rows, vectors
        function \name
        push    {r4-r11, lr}
        vpush   {d8-d11}
        clear_sums
        ldr     r2, [r0]
        ldr     r3, [r0, #4]
        ldr     r4, [r0, #28]
        ldr     r5, [r0, #32]
        .if \rows == 3
        sub     r5, r5, #8
        .endif
        b       5f
1:      ldr     r10, [r2], #4
        ldr     r11, [r2], #4
        ldr     r6, [r0, #8]
        ldr     r7, [r0, #12]
        ldr     r8, [r0, #16]
        ldr     r12, [r0, #20]
        ldr     r9, [r0, #24]
        cmp     r9, #0
        beq     5f
        add     r6, r6, r11, lsl #2
        add     r7, r7, r11, lsl #2
        mla     r8, r10, r12, r8
        load_channel \rows, \vectors, q0, q1, d4, d5
        subs    r9, r9, #1
        beq     3f
2:      load_channel \rows, \vectors, q3, q4, d10, d11
        subs    r9, r9, #1
        multiply \rows, \vectors, q0, q1, d4[0], d4[1], d5[0], d5[1]
        beq     4f
        load_channel \rows, \vectors, q0, q1, d4, d5
        subs    r9, r9, #1
        multiply \rows, \vectors, q3, q4, d10[0], d10[1], d11[0], d11[1]
        bne     2b
3:      multiply \rows, \vectors, q0, q1, d4[0], d4[1], d5[0], d5[1]
        b       5f
4:      multiply \rows, \vectors, q3, q4, d10[0], d10[1], d11[0], d11[1]
5:      cmp     r2, r3
        bne     1b
        vstm    r1, {d16-d31}
        vpop    {d8-d11}
        pop     {r4-r11, pc}
        .size   \name, . - \name
        .endm

@ ---- products(r0: *const ProductsCall, r1: *mut Sums)
@ r2, r3: runs and their end; r4, r5: columns and their step; r6 to r9: sources of the rows;
@ r10: places that are left.

@ Four places of each row into q0 to q3.
        .macro  load_places rows
        vld1.32 {q0}, [r6]!
        .if \rows > 1
        vld1.32 {q1}, [r7]!
        .endif
        .if \rows > 2
        vld1.32 {q2}, [r8]!
        .endif
        .if \rows > 3
        vld1.32 {q3}, [r9]!
        .endif
        .endm

        .macro  load_place rows
        vld1.32 {d0[0]}, [r6]!
        .if \rows > 1
        vld1.32 {d2[0]}, [r7]!
        .endif
        .if \rows > 2
        vld1.32 {d4[0]}, [r8]!
        .endif
        .if \rows > 3
        vld1.32 {d6[0]}, [r9]!
        .endif
        .endm

        .macro  load_columns vectors, x, y
        .if \vectors == 2
        vld1.32 {\x, \y}, [r4], r5
        .else
        vld1.32 {\x}, [r4], r5
        .endif
        .endm

        .macro  products name, rows, vectors
        function \name
        push    {r4-r11, lr}
        vpush   {d8-d15}
        clear_sums
        ldr     r2, [r0]
        ldr     r3, [r0, #4]
        ldr     r5, [r0, #20]
        b       5f
1:      ldr     r11, [r2], #4
        ldr     r12, [r2], #4
        ldr     r10, [r2], #4
        ldr     r6, [r0, #8]
        ldr     lr, [r0, #12]
        ldr     r4, [r0, #16]
        add     r6, r6, r11, lsl #2
        mla     r4, r12, r5, r4
        add     r7, r6, lr
        add     r8, r7, lr
        add     r9, r8, lr
        subs    r10, r10, #4
        blt     3f
2:      load_columns \vectors, q4, q5
        load_places \rows
        load_columns \vectors, q6, q7
        multiply \rows, \vectors, q4, q5, d0[0], d2[0], d4[0], d6[0]
        load_columns \vectors, q4, q5
        multiply \rows, \vectors, q6, q7, d0[1], d2[1], d4[1], d6[1]
        load_columns \vectors, q6, q7
        subs    r10, r10, #4
        multiply \rows, \vectors, q4, q5, d1[0], d3[0], d5[0], d7[0]
        multiply \rows, \vectors, q6, q7, d1[1], d3[1], d5[1], d7[1]
        bge     2b
3:      adds    r10, r10, #4
        beq     5f
4:      load_columns \vectors, q4, q5
        load_place \rows
        subs    r10, r10, #1
        multiply \rows, \vectors, q4, q5, d0[0], d2[0], d4[0], d6[0]
        bne     4b
5:      cmp     r2, r3
        bne     1b
        vstm    r1, {d16-d31}
        vpop    {d8-d15}
        pop     {r4-r11, pc}
        .size   \name, . - \name
        .endm

        outputs dunlin_outputs_4x2, 4, 2
        outputs dunlin_outputs_4x1, 4, 1
        outputs dunlin_outputs_3x2, 3, 2
        outputs dunlin_outputs_3x1, 3, 1
        outputs dunlin_outputs_2x2, 2, 2
        outputs dunlin_outputs_2x1, 2, 1
        outputs dunlin_outputs_1x2, 1, 2
        outputs dunlin_outputs_1x1, 1, 1
        products dunlin_products_4x2, 4, 2
        products dunlin_products_4x1, 4, 1
        products dunlin_products_3x2, 3, 2
        products dunlin_products_3x1, 3, 1
        products dunlin_products_2x2, 2, 2
        products dunlin_products_2x1, 2, 1
        products dunlin_products_1x2, 1, 2
        products dunlin_products_1x1, 1, 1
