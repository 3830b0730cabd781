use super::frame::seal;
use super::*;

type MemLog = Log<MemDisk>;

fn open(disk: MemDisk) -> MemLog {
    Log::open(disk).unwrap()
}

/// A log with one batch per item, in reign 1; each batch has the item's number of payloads.
fn log_with(batches: &[usize]) -> MemLog {
    let mut log = open(MemDisk::new());
    for count in batches {
        append(&mut log, *count);
    }
    log
}

fn append(log: &mut MemLog, count: usize) -> Index {
    let first = Index(log.head().0 + 1);
    let batch: Vec<String> = (0..count as u64).map(|more| payload(first.0 + more)).collect();
    log.append(Reign(1), first, &batch).unwrap()
}

fn payload(index: u64) -> String {
    format!("record {index} ").repeat(1 + index as usize % 3)
}

fn all(log: &MemLog) -> Vec<Entry> {
    log.read(log.floor(), usize::MAX).unwrap()
}

/// Whatever happened, what is served is what was written, from the first on, and batches are whole.
fn assert_prefix(log: &MemLog, batches: &[usize]) -> usize {
    let entries = all(log);
    for (entry, index) in entries.iter().zip(1..) {
        assert_eq!((entry.index.0, entry.payload.as_slice()), (index, payload(index).as_bytes()));
    }
    let ends = batches.iter().scan(0, |end, count| {
        *end += count;
        Some(*end)
    });
    let whole = [0].into_iter().chain(ends).position(|end| end == entries.len());
    whole.unwrap_or_else(|| panic!("{} entries are no whole batches of {batches:?}", entries.len()))
}

fn span(log: &MemLog, at: usize) -> std::ops::Range<u64> {
    let place = &log.places[at];
    place.offset..place.offset + place.len as u64
}

fn is_damaged(error: &Error, name: &str) -> bool {
    matches!(error, Error::Damaged { file, .. } if file == &format!("memory/{name}"))
}

#[test]
fn what_was_appended_is_read_back() {
    let mut log = log_with(&[1, 3, 2]);
    assert_eq!((log.head(), log.reign(), log.floor()), (Index(6), Reign(1), Index(1)));
    let before = all(&log);
    assert_eq!(before.len(), 6);
    assert_eq!(log.read(Index(3), usize::MAX).unwrap(), before[2..]);
    assert_eq!(log.read(Index(7), usize::MAX).unwrap(), []);
    assert_eq!(log.read(Index(2), 1).unwrap(), before[1..4], "one whole batch at least");
    log.disk_mut().crash(Crash::PowerLost);
    let log = open(log.into_disk());
    assert_eq!(all(&log), before);
    assert_eq!(log.repairs(), &Repairs::default());
}

#[test]
fn indices_may_leave_gaps_forward_and_never_go_back() {
    let mut log = log_with(&[2]);
    let taken = |given| Error::NotForward { given: Index(given), head: Index(2) };
    for given in [0, 1, 2] {
        assert_eq!(log.append(Reign(1), Index(given), &["x"]), Err(taken(given)));
    }
    for given in [u64::MAX, u64::MAX - 1] {
        assert_eq!(log.append(Reign(1), Index(given), &["x", "y"]), Err(taken(given)));
    }
    log.append(Reign(1), Index(1000), &["x", "y"]).unwrap();
    let log = open(log.into_disk());
    assert_eq!(log.head(), Index(1001));
    let indices: Vec<u64> = log.read(Index(2), 4096).unwrap().iter().map(|entry| entry.index.0).collect();
    assert_eq!(indices, [2, 1000, 1001]);
}

#[test]
fn a_reign_only_grows() {
    let mut log = log_with(&[1]);
    log.begin_reign(Reign(4)).unwrap();
    let deposed = |given| Error::Deposed { given: Reign(given), reign: Reign(4) };
    assert_eq!(log.begin_reign(Reign(4)), Err(deposed(4)));
    assert_eq!(log.append(Reign(3), Index(2), &["x"]), Err(deposed(3)));
    let mut log = open(log.into_disk());
    assert_eq!((log.reign(), log.head()), (Reign(4), Index(1)));
    assert_eq!(log.append(Reign(3), Index(2), &["x"]), Err(deposed(3)));
    log.append(Reign(4), Index(2), &["x"]).unwrap();
    assert_eq!(open(log.into_disk()).read(Index(2), 1).unwrap()[0].reign, Reign(4));
}

#[test]
fn limits_are_kept_to() {
    let mut log = log_with(&[]);
    log.append(Reign(1), Index(1), &[vec![7; PAYLOAD_BYTES_MAX]]).unwrap();
    let too_large = |what, bytes, bytes_max| Err(Error::TooLarge { what, bytes, bytes_max });
    let one = log.append(Reign(1), Index(2), &[vec![7; PAYLOAD_BYTES_MAX + 1]]);
    assert_eq!(one, too_large("payload", PAYLOAD_BYTES_MAX + 1, PAYLOAD_BYTES_MAX));
    let four = log.append(Reign(1), Index(2), &vec![vec![7; PAYLOAD_BYTES_MAX]; 4]);
    assert_eq!(four, too_large("batch", BATCH_BYTES_MAX + 36, BATCH_BYTES_MAX));
    let log = open(log.into_disk());
    assert_eq!((log.head(), all(&log)[0].payload.len()), (Index(1), PAYLOAD_BYTES_MAX));
}

#[test]
fn empty_payloads_are_payloads() {
    let mut log = log_with(&[]);
    log.append(Reign(0), Index(1), &["", "", ""]).unwrap();
    assert_eq!(all(&open(log.into_disk())).len(), 3);
}

#[test]
fn a_write_cut_at_any_byte_is_cut_from_the_log() {
    // Frames of 56, 120, ... bytes: the last ones lie across the first block's end.
    let before = [1, 2, 4, 3];
    for last in [1, 5, 40] {
        let whole = [&before[..], &[last]].concat();
        let written = log_with(&whole);
        let frame = span(&written, before.len());
        let bytes = written.disk().read_at(LOG, frame.start, written.places[before.len()].len).unwrap();
        for kept in 0..=frame.end - frame.start {
            let mut disk = log_with(&before).into_disk();
            disk.write_at(LOG, frame.start, &bytes).unwrap();
            disk.crash(Crash::Torn(kept));
            let log = open(disk);
            let batches = assert_prefix(&log, &whole);
            assert_eq!(batches == whole.len(), kept == frame.end - frame.start, "{kept} bytes kept");
            assert!(batches >= before.len(), "{kept} bytes kept");
            let torn = (1..frame.end - frame.start).contains(&kept);
            assert_eq!(log.repairs().torn, torn.then(|| ("memory/log".to_owned(), frame.start)));
            let again = open(log.into_disk());
            assert_eq!(again.repairs(), &Repairs::default());
        }
    }
}

#[test]
fn a_write_of_which_any_blocks_are_lost_is_cut() {
    let before = [1, 2, 4, 3];
    let whole = [1, 2, 4, 3, 150];
    let written = log_with(&whole);
    let frame = span(&written, before.len());
    let bytes = written.disk().read_at(LOG, frame.start, written.places[4].len).unwrap();
    let blocks = frame.end / 512 + 1;
    assert!((5..12).contains(&blocks), "{blocks} blocks are enough and not too many to try all subsets");
    for mask in 0..1_u64 << blocks {
        let mut disk = log_with(&before).into_disk();
        disk.write_at(LOG, frame.start, &bytes).unwrap();
        disk.crash(Crash::Blocks(mask));
        let batches = assert_prefix(&open(disk), &whole);
        let survived = (frame.start / 512..=(frame.end - 1) / 512).all(|block| mask >> block & 1 == 1);
        assert_eq!(batches, if survived { 5 } else { 4 }, "mask {mask:b}");
    }
}

#[test]
fn a_decayed_length_before_a_write_that_was_cut_is_damage() {
    // What lies behind the last good record must not make it look cut itself: it was acknowledged.
    let before = [1, 2, 4, 3];
    let written = log_with(&[1, 2, 4, 3, 150]);
    let (good, cut) = (span(&written, 3), span(&written, 4));
    let bytes = written.disk().read_at(LOG, cut.start, written.places[4].len).unwrap();
    let blocks = cut.end / 512 + 1;
    let shortened = (0..cut.end - cut.start).map(Crash::Torn);
    let holed = (0..(1_u64 << blocks) - 1).map(Crash::Blocks);
    for (crash, bit) in shortened.chain(holed).zip((0..32).cycle()) {
        let mut disk = log_with(&before).into_disk();
        disk.write_at(LOG, cut.start, &bytes).unwrap();
        disk.crash(crash);
        disk.flip(LOG, good.start + bit / 8, 1 << (bit % 8));
        let error = Log::open(disk).unwrap_err();
        assert!(is_damaged(&error, LOG), "bit {bit}, {crash:?}: {error}");
    }
}

#[test]
fn a_file_shortened_at_any_byte_serves_whole_batches_or_nothing() {
    let batches = [1, 2, 4];
    let log = log_with(&batches);
    for len in 0..=log.end {
        let mut disk = log.disk().clone();
        disk.truncate(LOG, len);
        match Log::open(disk) {
            Ok(log) => {
                let whole = assert_prefix(&log, &batches);
                assert_eq!(whole, log.places.len());
                assert!(len >= HEADER_LEN as u64);
            }
            Err(error) => assert!(is_damaged(&error, LOG) && len < HEADER_LEN as u64, "{len}: {error}"),
        }
    }
    // These records were there when the file was made: now their loss shows.
    let log = open(log.into_disk());
    for len in 0..log.end {
        let mut disk = log.disk().clone();
        disk.truncate(LOG, len);
        let error = Log::open(disk).unwrap_err();
        assert!(is_damaged(&error, LOG), "{len}: {error}");
    }
}

#[test]
fn a_flipped_bit_in_any_frame_or_the_header_is_refused() {
    for batches in [&[1, 2, 4][..], &[1], &[1, 2, 4, 3, 40, 1]] {
        let log = log_with(batches);
        for offset in 0..log.end {
            for bit in 0..8 {
                let mut disk = log.disk().clone();
                disk.truncate(LOG, log.end + 1000);
                disk.flip(LOG, offset, 1 << bit);
                let before = disk.clone();
                let error = Log::open(disk.clone()).unwrap_err();
                assert!(is_damaged(&error, LOG), "bit {bit} of byte {offset}: {error}");
                assert_eq!(disk, before, "a refusal changes nothing");
                let place = log.places.iter().find(|place| offset < place.offset + place.len as u64).unwrap();
                let Error::Damaged { offset: named, .. } = error else { unreachable!() };
                assert_eq!(named, if offset < HEADER_LEN as u64 { 0 } else { place.offset });
            }
        }
    }
}

#[test]
fn a_cleared_stretch_never_serves_a_wrong_payload() {
    let batches = [2, 3, 2, 2];
    let log = log_with(&batches);
    let last = span(&log, 3);
    for from in HEADER_LEN as u64..log.end {
        for len in [1, 4, 8, 16, 64] {
            let mut disk = log.disk().clone();
            let end = (from + len).min(log.end);
            disk.write_at(LOG, from, &vec![0; (end - from) as usize]).unwrap();
            match Log::open(disk) {
                Ok(log) => {
                    assert!(assert_prefix(&log, &batches) == 4 || from >= last.start || end == last.end)
                }
                Err(error) => assert!(is_damaged(&error, LOG)),
            }
        }
    }
}

#[test]
fn noise_in_the_preallocated_part_loses_nothing() {
    let log = log_with(&[1, 2]);
    for offset in [log.end, log.end + 9, log.end + 4000, CHUNK - 1] {
        let mut disk = log.disk().clone();
        disk.flip(LOG, offset, 0x10);
        match Log::open(disk) {
            Ok(log) => assert_eq!(assert_prefix(&log, &[1, 2]), 2),
            Err(error) => assert!(is_damaged(&error, LOG), "{error}"),
        }
    }
}

#[test]
fn a_frame_counts_only_in_its_place() {
    let mut log = log_with(&[1]);
    // A payload that is a frame in itself must not be found by the search behind a torn one.
    let inner = seal(0, &frame::body(Reign(1), Index(3), &["forged"]));
    log.append(Reign(1), Index(2), &[inner]).unwrap();
    let end = log.end;
    let mut disk = log.into_disk();
    disk.truncate(LOG, end - 1);
    assert_eq!(assert_prefix(&open(disk), &[1]), 1);
}

#[test]
fn a_failed_write_or_sync_ends_writing_until_opened_again() {
    for (op, after) in [(Op::Write, 0), (Op::Sync, 0)] {
        let mut log = log_with(&[1, 2]);
        log.disk_mut().fail(op, after, DiskError::Io("bad sector".to_owned()));
        let error = log.append(Reign(1), Index(4), &["lost?"]).unwrap_err();
        assert!(matches!(&error, Error::Disk { source: DiskError::Io(text), .. } if text == "bad sector"));
        let stopped = Error::Stopped { source: Box::new(error) };
        assert_eq!(log.append(Reign(1), Index(4), &["again"]), Err(stopped.clone()));
        assert_eq!(log.begin_reign(Reign(9)), Err(stopped.clone()));
        assert_eq!(log.save_snapshot(Index(3), b"state"), Err(stopped.clone()));
        assert_eq!(log.compact(Index(3)), Err(stopped));
        assert_eq!(assert_prefix(&log, &[1, 2]), 2, "what was acknowledged can still be read");
        let mut power_lost = log.disk().clone();
        power_lost.crash(Crash::PowerLost);
        assert_eq!(assert_prefix(&open(power_lost), &[1, 2]), 2);
    }
}

#[test]
fn room_is_safe_before_a_frame_goes_into_it() {
    let mut log = log_with(&[]);
    log.append(Reign(1), Index(1), &[vec![b'x'; CHUNK as usize - 200]]).unwrap();
    assert_eq!(log.room, CHUNK);
    log.disk_mut().fail(Op::Sync, 0, DiskError::Io("bad sector".to_owned()));
    log.append(Reign(1), Index(2), &[[b'y'; 300]]).unwrap_err();
    let behind = log.disk().read_at(LOG, log.end, CHUNK as usize).unwrap();
    assert!(behind.iter().all(|byte| *byte == 0));
}

#[test]
fn what_was_served_after_a_failed_sync_survives_a_power_cut() {
    let mut log = log_with(&[1]);
    log.disk_mut().fail(Op::Sync, 0, DiskError::Io("bad sector".to_owned()));
    log.append(Reign(1), Index(2), &[payload(2)]).unwrap_err();
    let mut disk = log.into_disk();
    disk.crash(Crash::Process);
    // The system still shows the bytes, and takes them for clean.
    let mut log = open(disk);
    assert_eq!(assert_prefix(&log, &[1, 1]), 2);
    append(&mut log, 1);
    log.disk_mut().crash(Crash::PowerLost);
    assert_eq!(assert_prefix(&open(log.into_disk()), &[1, 1, 1]), 3);
}

#[test]
fn a_failure_at_any_point_of_opening_loses_nothing() {
    let written = log_with(&[1, 2, 3]).into_disk();
    let crashes = [Crash::Process, Crash::PowerLost, Crash::Torn(0), Crash::Torn(70), Crash::Blocks(0)];
    for op in [Op::Write, Op::SetLen, Op::Sync, Op::SyncDir, Op::Rename] {
        for (after, error) in
            [(0, DiskError::Full), (0, DiskError::Io("bad".to_owned())), (1, DiskError::Full)]
        {
            for crash in crashes {
                let disk = SharedDisk::new(written.clone());
                disk.get().fail(op, after, error.clone());
                let opened = Log::open(disk.clone()).map(drop);
                assert!(opened.is_err() || after > 0);
                disk.get().crash(crash);
                assert_eq!(
                    assert_prefix(&open(std::mem::take(&mut *disk.get())), &[1, 2, 3]),
                    3,
                    "{op:?} {after} {crash:?}"
                );
            }
        }
    }
}

#[test]
fn a_full_disk_refuses_and_goes_on_once_there_is_room() {
    let mut disk = MemDisk::new();
    disk.set_capacity(Some(3 * CHUNK));
    let mut log = open(disk);
    let payload = vec![b'x'; 100_000];
    let full = loop {
        let first = Index(log.head().0 + 1);
        if let Err(error) = log.append(Reign(1), first, &[&payload]) {
            break error;
        }
    };
    assert_eq!(full, Error::Full { file: "memory/log".to_owned(), doing: "append" });
    assert_eq!(log.failure(), None);
    let head = log.head();
    log.append(Reign(1), Index(head.0 + 1), &["small ones still fit"]).unwrap();
    log.disk_mut().set_capacity(None);
    log.append(Reign(1), Index(head.0 + 2), &[&payload]).unwrap();
    assert_eq!(open(log.into_disk()).head(), Index(head.0 + 2));
}

#[test]
fn no_room_for_a_copy_is_said_and_changes_nothing() {
    let mut log = log_with(&[1, 2]);
    log.save_snapshot(Index(2), b"two").unwrap();
    log.save_snapshot(Index(3), b"three").unwrap();
    log.disk_mut().set_capacity(Some(CHUNK + 400));
    assert!(matches!(log.compact(Index(3)), Err(Error::Full { .. })));
    assert!(matches!(log.save_snapshot(Index(3), &[b'x'; 1000]), Err(Error::Full { .. })));
    assert_eq!(log.disk().list().unwrap(), [LOG, SLOTS[0], SLOTS[1]], "no half copy takes the room");
    append(&mut log, 1);
    assert!(matches!(Log::open(log.disk().clone()), Err(Error::Full { .. })));
    log.disk_mut().set_capacity(None);
    assert_eq!(log.compact(Index(3)), Ok(Index(3)));
    assert_eq!(open(log.into_disk()).head(), Index(4));
}

#[test]
fn snapshots_take_turns_and_bound_the_log() {
    let mut log = log_with(&[1, 2, 3, 1]);
    assert_eq!(log.load_snapshot(), Ok(None));
    log.save_snapshot(Index(3), b"three").unwrap();
    assert_eq!(
        log.compact(Index(4)),
        Ok(Index(1)),
        "the first snapshot has nothing behind it to fall back on"
    );
    log.save_snapshot(Index(6), b"six").unwrap();
    assert_eq!(log.compact(Index(7)), Ok(Index(4)), "the older snapshot needs these");
    assert_eq!(log.read(Index(3), 1), Err(Error::Compacted { floor: Index(4) }));
    assert_eq!(all(&log).len(), 4);
    let log = open(log.into_disk());
    let newest = Snapshot { index: Index(6), reign: Reign(1), bytes: b"six".to_vec() };
    assert_eq!(log.load_snapshot(), Ok(Some(newest)));
    assert_eq!((log.floor(), log.head(), all(&log).len()), (Index(4), Index(7), 4));
}

#[test]
fn a_batch_that_begins_below_the_floor_is_kept_whole() {
    let mut log = log_with(&[5, 2]);
    log.save_snapshot(Index(3), b"").unwrap();
    log.save_snapshot(Index(7), b"").unwrap();
    assert_eq!(log.compact(Index(8)), Ok(Index(4)));
    let log = open(log.into_disk());
    assert_eq!(log.read(Index(4), 1).unwrap()[0].index, Index(4));
    assert_eq!(all(&log).len(), 4);
}

#[test]
fn a_log_without_entries_knows_its_head_and_reign() {
    let mut log = log_with(&[2]);
    log.begin_reign(Reign(5)).unwrap();
    log.save_snapshot(Index(2), b"").unwrap();
    log.save_snapshot(Index(2), b"").unwrap();
    assert_eq!(log.compact(Index(9)), Ok(Index(3)));
    let mut log = open(log.into_disk());
    assert_eq!((log.head(), log.reign(), log.places.len()), (Index(2), Reign(5), 0));
    assert!(log.append(Reign(5), Index(2), &["x"]).is_err());
    log.append(Reign(5), Index(3), &["x"]).unwrap();
    assert_eq!(open(log.into_disk()).head(), Index(3));
}

#[test]
fn a_snapshot_is_refused_where_it_cannot_be() {
    let mut log = log_with(&[3]);
    let refused = |given, newest| {
        Err(Error::SnapshotIndex { given: Index(given), newest: Index(newest), head: Index(3) })
    };
    assert_eq!(log.save_snapshot(Index(4), b""), refused(4, 0));
    log.save_snapshot(Index(2), b"").unwrap();
    assert_eq!(log.save_snapshot(Index(1), b""), refused(1, 2));
}

fn log_with_snapshots() -> MemLog {
    let mut log = log_with(&[1, 1, 1]);
    log.save_snapshot(Index(1), b"one").unwrap();
    log.save_snapshot(Index(2), b"two").unwrap();
    assert_eq!(log.compact(Index(3)), Ok(Index(2)));
    log
}

#[test]
fn a_damaged_snapshot_falls_back_to_the_older_one_and_the_log() {
    let len = log_with_snapshots().disk().read(SLOTS[1]).unwrap().unwrap().len() as u64;
    for offset in 0..len {
        let mut disk = log_with_snapshots().into_disk();
        disk.flip(SLOTS[1], offset, 1);
        let mut log = open(disk);
        assert_eq!(log.repairs().snapshot.as_deref(), Some("memory/snapshot.1"));
        assert_eq!(log.load_snapshot().unwrap().unwrap().bytes, b"one");
        assert_eq!(log.read(Index(2), usize::MAX).unwrap().len(), 2);
        log.save_snapshot(Index(3), b"three").unwrap();
        let log = open(log.into_disk());
        assert_eq!(
            (log.repairs(), log.load_snapshot().unwrap().unwrap().index),
            (&Repairs::default(), Index(3))
        );
    }
}

#[test]
fn a_log_that_reaches_back_to_no_good_snapshot_is_refused() {
    let mut both = log_with_snapshots().into_disk();
    both.flip(SLOTS[0], 70 - 6, 1);
    both.truncate(SLOTS[1], 66);
    assert!(is_damaged(&Log::open(both).unwrap_err(), SLOTS[1]));

    let mut none = log_with_snapshots().into_disk();
    none.remove(SLOTS[0]).unwrap();
    none.remove(SLOTS[1]).unwrap();
    assert!(matches!(Log::open(none), Err(Error::Missing { .. })));

    let mut shortened = log_with_snapshots().into_disk();
    shortened.remove(LOG).unwrap();
    assert!(matches!(Log::open(shortened.clone()), Err(Error::Missing { .. })));

    let mut ends_early = log_with(&[1]).into_disk();
    ends_early.write_at(SLOTS[0], 0, &shortened.read(SLOTS[1]).unwrap().unwrap()).unwrap();
    let error = Log::open(ends_early).unwrap_err();
    assert!(matches!(error, Error::Missing { what: "the log ends before the snapshot was taken", .. }));
}

#[test]
fn damage_under_a_running_log_is_not_served() {
    let mut log = log_with_snapshots();
    let place = span(&log, 0);
    log.disk_mut().flip(LOG, place.start + 30, 1);
    assert!(is_damaged(&log.read(Index(2), 1).unwrap_err(), LOG));
    log.disk_mut().flip(SLOTS[1], 65, 1);
    assert!(is_damaged(&log.load_snapshot().unwrap_err(), SLOTS[1]));
}

#[test]
fn a_crash_at_any_point_of_a_snapshot_or_a_compaction_loses_nothing() {
    let crashes = [Crash::Process, Crash::PowerLost, Crash::Torn(0), Crash::Torn(70), Crash::Blocks(1)];
    for op in [Op::Write, Op::SetLen, Op::Sync, Op::SyncDir, Op::Rename] {
        for after in 0..6 {
            for crash in crashes {
                let mut log = log_with_snapshots();
                log.disk_mut().fail(op, after, DiskError::Io("bad".to_owned()));
                let _ = log.save_snapshot(Index(3), b"three").and_then(|()| log.compact(Index(4)));
                log.disk_mut().crash(crash);
                let log = open(log.into_disk());
                let snapshot = log.load_snapshot().unwrap().unwrap();
                let rest = log.read(Index(snapshot.index.0 + 1), usize::MAX).unwrap();
                let covered = (snapshot.index.0 + 1..=3).map(Index).collect::<Vec<_>>();
                let told: Vec<Index> = rest.iter().map(|entry| entry.index).collect();
                assert_eq!(told, covered, "{op:?} {after} {crash:?}");
            }
        }
    }
}

#[test]
fn a_restore_goes_on_above_its_snapshot() {
    let mut log = Log::restore(MemDisk::new(), Index(1000), Reign(7), b"state").unwrap();
    assert!(log.append(Reign(7), Index(1000), &["x"]).is_err());
    log.append(Reign(7), Index(1001), &["x"]).unwrap();
    let log = open(log.into_disk());
    assert_eq!((log.floor(), log.head(), log.reign()), (Index(1001), Index(1001), Reign(7)));
    assert_eq!(log.load_snapshot().unwrap().unwrap().bytes, b"state");
    let exists = Log::restore(log.into_disk(), Index(2000), Reign(7), b"").unwrap_err();
    assert_eq!(exists, Error::Exists { file: "memory/log".to_owned() });
}

#[test]
fn a_restore_that_was_cut_short_is_refused() {
    let disk = SharedDisk::new(MemDisk::new());
    disk.get().fail(Op::Sync, 1, DiskError::Io("bad".to_owned()));
    Log::restore(disk.clone(), Index(1000), Reign(7), b"state").unwrap_err();
    assert!(matches!(Log::open(disk), Err(Error::Missing { .. })));
}

#[test]
fn a_later_format_is_left_alone() {
    let mut disk = log_with(&[1]).into_disk();
    let mut header = disk.read_at(LOG, 0, HEADER_LEN).unwrap();
    header[8] = 2;
    let sum = crc32c::crc32c(&header[..60]);
    header[60..].copy_from_slice(&sum.to_le_bytes());
    disk.write_at(LOG, 0, &header).unwrap();
    let error = Log::open(disk).unwrap_err();
    assert_eq!(error, Error::Version { file: "memory/log".to_owned(), found: 2 });
}

#[test]
fn the_same_calls_give_the_same_bytes() {
    assert_eq!(log_with(&[1, 2]), log_with(&[1, 2]));
    assert_ne!(log_with(&[1, 2]), log_with(&[2, 1]));
}
