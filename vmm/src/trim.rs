//! What only the start needed, given back to the host once the guest runs.
//!
//! Options, kernel loaders and the machine's construction are most of the program, and most of a
//! pod's own memory is pages of the program. They are in the page cache in any case: mapped, they
//! count as the pod's and the host is slow to reclaim them; unmapped, they are the cache's alone,
//! and what is needed again comes back by a minor fault. The heap's free pages go as well.
#![expect(
    unsafe_code,
    reason = "madvise(2) and malloc_trim(3) have no safe wrapper, and loaded segments are known by address"
)]

use std::ffi::{c_int, c_void};
use std::time::Duration;

/// `PF_W` (ELF-64 object file format, program header): a segment that may be written to.
const PF_W: u32 = 2;
const PAGE_BYTES: u64 = 4096;
/// What ends `dl_iterate_phdr`: the first object is the program, what follows is the kernel's.
const ENOUGH: c_int = 1;

/// From what has needed memory to the first trim.
const FIRST: Duration = Duration::from_secs(1);
/// Each pause is twice as long as the one before, up to this.
const LAST: Duration = Duration::from_secs(64);

/// What has used memory since the last trim, and so decides when the next one is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// A start, or a command that changes something.
    Change,
    /// A question, as a scraper asks many. A trim has the threads of a guest that is at work find
    /// their pages again, so it comes rarely for that.
    Query,
}

/// When to trim: soon after a start or a command, and some more times, each after twice the pause
/// of the one before. What a guest needs of the program on its way to rest (its drivers' start, the
/// first files) comes after the first trim, and nobody tells when it is there: so that goes when
/// the guest has rested for as long as its way took, at the latest. Two minutes later there are no
/// more, and an idle VM is not woken.
#[derive(Debug)]
pub struct TrimSchedule(Duration);

impl Default for TrimSchedule {
    fn default() -> Self {
        Self(LAST)
    }
}

impl TrimSchedule {
    /// How long from now there has to be a trim for `activity`, at the latest.
    pub fn begin(&mut self, activity: Activity) -> Duration {
        match activity {
            Activity::Change => {
                self.0 = FIRST;
                FIRST
            }
            Activity::Query => LAST,
        }
    }

    /// It has been trimmed: how long from now the next one is, if there is one.
    pub fn next(&mut self) -> Option<Duration> {
        self.0 = self.0.saturating_mul(2);
        (self.0 <= LAST).then_some(self.0)
    }
}

/// Unmaps the program's pages that cannot have been written to, and returns free pages of the heap.
/// Any thread may be in the middle of them: it takes a page fault. A fault brings what is around it
/// as well, 64 KiB as a rule: so the heap comes first and the program's code last, and whoever
/// calls this should have nothing left to do.
pub fn trim() {
    trim_heap();
    let mut found = Segments::default();
    // SAFETY: the callback is called during this call only, with the program's own headers and what it is to write to.
    unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut found).cast()) };
    for (start, len) in found.0.into_iter().flatten() {
        // SAFETY: these pages are private, of a file, and never written to: what is read there next
        // is what was read before. Where the host refuses, they stay.
        unsafe { libc::madvise(start as *mut c_void, len, libc::MADV_DONTNEED) };
    }
}

/// Returns free pages of the heap. Any thread may call it.
pub fn trim_heap() {
    // SAFETY: a number only; malloc takes its own lock.
    unsafe { libc::malloc_trim(0) };
}

/// Address and length of the read-only segments of the program, in the order of its headers: of
/// constants and of code. A linker makes no more than four.
#[derive(Debug, Default)]
struct Segments([Option<(usize, usize)>; 4]);

/// Finds the read-only segments of the program, which are its file as it is. Relocations are applied to writable ones.
unsafe extern "C" fn collect(info: *mut libc::dl_phdr_info, _size: usize, found: *mut c_void) -> c_int {
    // SAFETY: the loader passes a structure that is valid during the call.
    let info = unsafe { &*info };
    if info.dlpi_phdr.is_null() {
        return ENOUGH;
    }
    // SAFETY: the loader says where the headers are and how many.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    // SAFETY: `trim` passes a place that nobody else has during the call.
    let found = unsafe { &mut *found.cast::<Segments>() };
    let segments = headers
        .iter()
        .filter(|header| is_read_only(header))
        .filter_map(|header| pages(info.dlpi_addr, header));
    for (place, segment) in found.0.iter_mut().zip(segments) {
        *place = Some(segment);
    }
    ENOUGH
}

fn is_read_only(header: &libc::Elf64_Phdr) -> bool {
    header.p_type == libc::PT_LOAD && header.p_flags & PF_W == 0
}

/// Start and length of the whole pages of a segment. One that it shares with its neighbour stays.
fn pages(base: u64, header: &libc::Elf64_Phdr) -> Option<(usize, usize)> {
    let start = base.checked_add(header.p_vaddr)?;
    let end = start
        .checked_add(header.p_filesz)?
        .checked_div(PAGE_BYTES)?
        .checked_mul(PAGE_BYTES)?;
    let start = start.checked_next_multiple_of(PAGE_BYTES)?;
    let len = end.checked_sub(start).filter(|len| *len > 0)?;
    Some((usize::try_from(start).ok()?, usize::try_from(len).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(p_vaddr: u64, p_filesz: u64, p_flags: u32) -> libc::Elf64_Phdr {
        libc::Elf64_Phdr {
            p_type: libc::PT_LOAD,
            p_flags,
            p_offset: 0,
            p_vaddr,
            p_paddr: 0,
            p_filesz,
            p_memsz: p_filesz,
            p_align: 4096,
        }
    }

    #[test]
    fn trims_come_at_twice_the_distance_each_time_and_end() {
        let mut schedule = TrimSchedule::default();
        for _ in 0..2 {
            assert_eq!(schedule.begin(Activity::Change), Duration::from_secs(1));
            let pauses: Vec<u64> = std::iter::from_fn(|| schedule.next())
                .map(|pause| pause.as_secs())
                .collect();
            assert_eq!(pauses, [2, 4, 8, 16, 32, 64]);
        }
        schedule.begin(Activity::Change);
        schedule.next();
        schedule.begin(Activity::Change);
        assert_eq!(schedule.next(), Some(Duration::from_secs(2)), "a command begins anew");
    }

    #[test]
    fn a_query_is_followed_by_one_trim_and_changes_nothing_of_what_is_under_way() {
        let mut schedule = TrimSchedule::default();
        assert_eq!(schedule.begin(Activity::Query), Duration::from_secs(64));
        assert_eq!(schedule.next(), None);
        schedule.begin(Activity::Change);
        schedule.begin(Activity::Query);
        assert_eq!(schedule.next(), Some(Duration::from_secs(2)));
    }

    #[test]
    fn only_whole_pages_of_a_segment_are_its_own() {
        let whole = |vaddr, size| pages(0x10000, &segment(vaddr, size, 0));
        assert_eq!(whole(0, 0x3000), Some((0x10000, 0x3000)));
        assert_eq!(whole(0x10, 0x3000), Some((0x11000, 0x2000)));
        assert_eq!(whole(0x10, 0x1fef), None);
        assert_eq!(whole(0, 0xfff), None);
        assert_eq!(pages(u64::MAX, &segment(1, 1, 0)), None);
    }

    #[test]
    fn what_relocations_write_to_is_left_alone() {
        assert!(is_read_only(&segment(0, 1, !PF_W)));
        assert!(!is_read_only(&segment(0, 1, PF_W)));
    }

    #[test]
    fn the_programs_constants_and_code_are_found() {
        let mut found = Segments::default();
        // SAFETY: as in `trim`.
        unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut found).cast()) };
        let holds = |address: usize| {
            let mut segments = found.0.iter().flatten();
            segments.any(|(start, len)| (*start..start + len).contains(&address))
        };
        assert!(holds(pages as fn(_, _) -> _ as usize), "{found:x?}");
        assert!(holds("a constant".as_ptr() as usize), "{found:x?}");
        let local = 0_u8;
        assert!(!holds((&raw const local) as usize), "{found:x?}");
    }

    #[test]
    fn the_program_goes_on_after_it_was_trimmed() {
        let text = format!("{:?}", std::thread::current().id());
        trim();
        assert_eq!(format!("{:?}", std::thread::current().id()), text);
    }
}
