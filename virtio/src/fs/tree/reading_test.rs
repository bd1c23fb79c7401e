//! Reads that fall short, of a host that does as it is told.

use vm_memory::VolatileSlice;

use super::*;

/// Reads 8 bytes from 100 on into two buffers, of a host that gives one answer after the other; and
/// where it was asked for how much.
fn read_of(answers: &[Result<usize, Errno>]) -> (Result<usize, Errno>, Vec<(u64, usize)>) {
    let (mut one, mut two) = ([0u8; 3], [0u8; 5]);
    let mut iovecs = Iovecs::default();
    let mut live = iovecs.begin();
    live.push(VolatileSlice::from(&mut one[..]));
    live.push(VolatileSlice::from(&mut two[..]));
    let mut asked = Vec::new();
    let read = read_by(live.buffers(), 100, |part, at| {
        asked.push((at, part.as_slice().iter().map(|entry| entry.iov_len).sum()));
        answers[asked.len() - 1]
    });
    (read, asked)
}

#[test]
fn what_is_whole_or_nothing_is_not_asked_for_again() {
    for answer in [Ok(8), Ok(0), Err(Errno::IO), Err(Errno::INVAL)] {
        assert_eq!(read_of(&[answer]), (answer, vec![(100, 8)]));
    }
}

#[test]
fn a_short_read_is_the_end_only_if_nothing_is_behind_it() {
    assert_eq!(read_of(&[Ok(2), Ok(0)]), (Ok(2), vec![(100, 8), (102, 1)]));
    assert_eq!(
        read_of(&[Ok(2), Ok(1), Ok(4), Ok(0)]),
        (Ok(7), vec![(100, 8), (102, 1), (103, 5), (107, 1)])
    );
    assert_eq!(read_of(&[Ok(3), Ok(5)]), (Ok(8), vec![(100, 8), (103, 5)]));
}

#[test]
fn what_cannot_be_read_behind_a_short_read_is_an_error() {
    let asked = vec![(100, 8), (103, 5), (105, 3)];
    assert_eq!(read_of(&[Ok(3), Err(Errno::IO)]), (Err(Errno::IO), asked[..2].to_vec()));
    assert_eq!(read_of(&[Ok(3), Ok(2), Err(Errno::IO)]), (Err(Errno::IO), asked));
}

#[test]
fn direct_io_that_cannot_go_on_inside_of_a_block_is_at_the_end() {
    assert_eq!(read_of(&[Ok(5), Err(Errno::INVAL)]), (Ok(5), vec![(100, 8), (105, 3)]));
}
