//! What an answer takes from the allocator: its outputs, whatever the network.

#![expect(unsafe_code, reason = "an allocator is an unsafe trait; this one only counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use models::engine::Engine as _;
use models::engine::native::Native;
use models::tensor::Tensor;
use models::train::{Loss, Trainer};
use models::zoo;

thread_local! {
    /// Allocations of this thread, and their bytes.
    static TAKEN: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

/// Does what the system's does.
// SAFETY: everything is passed on to the system's allocator as it came; counting allocates nothing,
// since the cell is made at compile time and needs no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's; the system made it.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's; the system made it.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn count(bytes: usize) {
    let (times, before) = TAKEN.get();
    TAKEN.set((times + 1, before + bytes));
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Of an answer: what its inputs are compared with, the list of outputs, and of the output its values
/// and its shape, which is copied, grows, and is copied.
const PER_ANSWER: usize = 6;

#[test]
fn a_further_answer_allocates_its_outputs_alone() {
    const SHAPE: [usize; 3] = [3, 32, 32];
    for family in ["resnet8", "mobilenet_v2"] {
        let onnx = zoo::build(family, SHAPE, 10, 1).unwrap();
        let onnx = Trainer::for_evaluation(&onnx, Loss::default()).unwrap().to_folded_onnx();
        let session = Native.load(&onnx).unwrap();
        for examples in [1, 3] {
            let extents = [examples, SHAPE[0], SHAPE[1], SHAPE[2]];
            let values = vec![0.25; extents.iter().product()];
            let input = [Tensor::f32(&extents, values).unwrap()];
            session.run(&input).unwrap();
            for _ in 0..3 {
                let (times, bytes) = TAKEN.get();
                let outputs = session.run(&input).unwrap();
                let now = TAKEN.get();
                let taken = (now.0 - times, now.1 - bytes);
                let values = outputs[0].as_f32().unwrap().len();
                assert_eq!(values, examples * 10);
                assert!(
                    taken.0 <= PER_ANSWER && taken.1 <= 4 * values + 256,
                    "{family}: {taken:?}"
                );
            }
        }
    }
}
