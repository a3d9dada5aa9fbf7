//! Places of an output in tiles: rows of pixels, and how they are cut.

/// Pixels of a line that one tile makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) first: usize,
    pub(super) pixels: usize,
}

/// What a tile costs for each number that is summed, in additions of one vector: what it computes,
/// but no less than what additions that wait for each other take, and what it reads.
fn cost(rows: usize, vectors: usize) -> u64 {
    (2 * (rows * vectors).max(6) + rows + vectors) as u64
}

/// Parts of `len`, as few as can be with `most` in each, as equal as can be.
pub(super) fn parts(len: usize, most: usize) -> impl Iterator<Item = Stretch> {
    let count = len.div_ceil(most.max(1));
    (0..count).map(move |part| {
        let more = len % count;
        let first = part * (len / count) + part.min(more);
        Stretch { first, pixels: len / count + usize::from(part < more) }
    })
}

/// Vectors of a tile with which `vectors` of `pixels` places in each of `lines` cost least, and
/// what they cost. `tiles` are most rows by vectors.
pub(super) fn best(tiles: [usize; 4], vectors: usize, lines: usize, pixels: usize) -> (usize, u64) {
    let price = |width: usize| {
        let most = tiles[width - 1];
        let panels = parts(vectors, width).map(|panel| panel.pixels);
        let lines_price = panels
            .map(|panel| parts(pixels, most).map(|part| cost(part.pixels, panel)).sum::<u64>());
        (width, lines as u64 * lines_price.sum::<u64>())
    };
    let widths = (1..=4).filter(|width| tiles[width - 1] > 0);
    widths.map(price).min_by_key(|(_, price)| *price).unwrap_or((1, u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_what_is_cut() {
        for len in 1..50 {
            for most in 1..15 {
                let cut: Vec<_> = parts(len, most).collect();
                assert_eq!(cut.len(), len.div_ceil(most));
                let mut next = 0;
                for part in cut {
                    assert_eq!(part.first, next);
                    assert!((1..=most).contains(&part.pixels));
                    next += part.pixels;
                }
                assert_eq!(next, len);
            }
        }
    }

    #[test]
    fn tiles_are_those_that_there_are() {
        assert_eq!(best([4, 4, 0, 0], 5, 1, 9).0, 2);
        assert_eq!(best([4, 0, 0, 0], 5, 1, 9).0, 1);
    }
}
