//! Matrix views and their product: the one place that calls the `gemm` crate.

#![expect(unsafe_code, reason = "gemm takes pointers; columns of a matrix are written in parallel")]

use std::marker::PhantomData;

use gemm::Parallelism;

/// A matrix to read: element `(r, c)` is `data[r * row_stride + c * column_stride]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows behind each other, `row_stride` apart.
    ///
    /// # Panics
    /// When the last element lies outside of the data.
    pub(super) fn new(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= data.len());
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// Rows and columns changed places.
    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// A matrix to write, of rows that do not overlap. Parts of different columns may be written by
/// different threads.
#[derive(Debug)]
pub(super) struct MatrixMut<'a> {
    /// Of element `(0, 0)`; elements `(r, c)` at `r * row_stride + c` are this view's alone.
    start: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `MatrixMut` is the only way to its elements, as a `&mut [f32]` would be.
unsafe impl Send for MatrixMut<'_> {}

impl<'a> MatrixMut<'a> {
    /// Rows behind each other, `row_stride` apart.
    ///
    /// # Panics
    /// When rows overlap or the last element lies outside of the data.
    pub(super) fn new(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(columns <= row_stride || rows <= 1);
        assert!(rows == 0 || columns == 0 || (rows - 1) * row_stride + columns <= data.len());
        Self { start: data.as_mut_ptr(), rows, columns, row_stride, borrow: PhantomData }
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// One row.
    ///
    /// # Panics
    /// When there is no such row.
    pub(super) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: the row lies inside of the data (checked when made), and no other view has
        // elements of it.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(row * self.row_stride), self.columns)
        }
    }

    /// The columns before and from `at`.
    ///
    /// # Panics
    /// When there are fewer columns.
    pub(super) fn split_columns(self, at: usize) -> (Self, Self) {
        assert!(at <= self.columns);
        let right = Self {
            // SAFETY: `at` is at most one behind the first row's end.
            start: unsafe { self.start.add(at) },
            columns: self.columns - at,
            borrow: PhantomData,
            ..self
        };
        (Self { columns: at, ..self }, right)
    }

    /// The rows `from..to` for a while.
    ///
    /// # Panics
    /// When there are fewer rows.
    pub(super) fn rows_mut(&mut self, from: usize, to: usize) -> MatrixMut<'_> {
        assert!(from <= to && to <= self.rows);
        MatrixMut {
            // SAFETY: row `from` begins inside of the data, or no row is taken.
            start: unsafe { self.start.add(if from < to { from * self.row_stride } else { 0 }) },
            rows: to - from,
            columns: self.columns,
            row_stride: self.row_stride,
            borrow: PhantomData,
        }
    }

    /// The columns `from..to` for a while.
    ///
    /// # Panics
    /// When there are fewer columns.
    pub(super) fn columns_mut(&mut self, from: usize, to: usize) -> MatrixMut<'_> {
        assert!(from <= to && to <= self.columns);
        MatrixMut {
            // SAFETY: `from` is at most one behind the first row's end.
            start: unsafe { self.start.add(from) },
            rows: self.rows,
            columns: to - from,
            row_stride: self.row_stride,
            borrow: PhantomData,
        }
    }
}

/// What a product does with what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    /// Replaces it.
    Put,
    /// Is added to it.
    Add,
}

/// `out = scale a b` or `out += scale a b`; on all threads of the pool if `parallel`.
///
/// # Panics
/// When the shapes do not fit.
pub(super) fn multiply(
    out: &mut MatrixMut<'_>,
    into: Write,
    scale: f32,
    a: Matrix<'_>,
    b: Matrix<'_>,
    parallel: bool,
) {
    assert!(out.rows == a.rows && a.columns == b.rows && b.columns == out.columns);
    let parallelism =
        if parallel { Parallelism::Rayon(rayon::current_num_threads()) } else { Parallelism::None };
    let stride = |stride: usize| stride.cast_signed();
    // SAFETY: the views have checked that all elements of these shapes and strides lie inside of
    // their data, the shapes fit, and `out` overlaps neither operand as it is borrowed mutably.
    unsafe {
        gemm::gemm(
            out.rows,
            out.columns,
            a.columns,
            out.start,
            1,
            stride(out.row_stride),
            into == Write::Add,
            a.data.as_ptr(),
            stride(a.column_stride),
            stride(a.row_stride),
            b.data.as_ptr(),
            stride(b.column_stride),
            stride(b.row_stride),
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// The product of two square matrices on all threads of the pool.
pub(crate) fn multiply_squares(size: usize, a: &[f32], b: &[f32], out: &mut [f32]) {
    let mut out = MatrixMut::new(out, size, size, size);
    let (a, b) = (Matrix::new(a, size, size, size), Matrix::new(b, size, size, size));
    multiply(&mut out, Write::Put, 1.0, a, b, true);
}

/// Runs `work` on column ranges of `out` in parallel: `(first column, columns, scratch)`. Ranges
/// begin at multiples of `unit`; how they are cut depends only on `scratch.len() / per_task`,
/// the number of tasks.
pub(super) fn for_columns<F>(
    out: MatrixMut<'_>,
    unit: usize,
    scratch: &mut [f32],
    per_task: usize,
    work: &F,
) where
    F: Fn(usize, MatrixMut<'_>, &mut [f32]) + Sync,
{
    split(0, out, unit, scratch, per_task, work);
}

fn split<F>(
    first: usize,
    out: MatrixMut<'_>,
    unit: usize,
    scratch: &mut [f32],
    per_task: usize,
    work: &F,
) where
    F: Fn(usize, MatrixMut<'_>, &mut [f32]) + Sync,
{
    let tasks = scratch.len().checked_div(per_task).unwrap_or(1);
    let units = out.columns().div_ceil(unit.max(1));
    if tasks <= 1 || units <= 1 {
        work(first, out, scratch);
        return;
    }
    let left_tasks = tasks / 2;
    let cut = (units * left_tasks / tasks).max(1) * unit;
    let (left, right) = out.split_columns(cut);
    let (left_scratch, right_scratch) = scratch.split_at_mut(left_tasks * per_task);
    rayon::join(
        || split(first, left, unit, left_scratch, per_task, work),
        || split(first + cut, right, unit, right_scratch, per_task, work),
    );
}
