// Package journal is a node's write-ahead log: an append-only log of key
// operations with group commit.
//
// Commit writes a group of operations (Op). While a frame is being written, the
// groups of all waiting callers are merged into the next one, which is written
// and synced once. When Commit returns nil its operations survive power loss,
// all of them or none, in the order in which commits were enqueued. Release
// drops frames at the head of the log that are safe elsewhere; Open replays the
// others. There is no index, and frames are read only by Open. All access to
// the disk passes through FS, so that tests can make every operation fail or
// crash.
//
// One goroutine writes frames, another prepares the next segment. All methods
// may be called concurrently. Only one process may have a journal open.
//
// # Format
//
// Integers are little-endian. A directory holds
//
//	checkpoint              where the journal counts from
//	0000000000000001.seg    segments, by number in hexadecimal, without a gap
//	                        from the checkpoint's first on; the last one or two
//	                        may have been made ready and hold no frame yet
//	spare-…                 released segments, to be used again
//	checkpoint.tmp, segment.tmp    not finished yet
//
// The checkpoint, and the start of each segment, is a label of 72 bytes:
//
//	 0  8  magic: "CNTSchk\n", "CNTSseg\n"
//	 8  4  version, 1
//	12  4  CRC-32C of the other 68 bytes
//	16  8  salt
//	24 16  store id
//	40  8  checkpoint: number of the first segment   segment: its number
//	48  8  sequence number of that one's first frame          its size in bytes
//	56  8  last released sequence number                      0
//	64  8  last sequence number if closed, else 2^64-1        0
//
// Frames begin at offset 4096 of a segment, so that writing them never rewrites
// the block in which the label stands, follow each other, and never span
// segments:
//
//	 0  4  length of the body
//	 4  4  CRC-32C of salt, length, masked sequence number, body and padding
//	 8  8  sequence number XOR salt
//	16     body, then padding to a multiple of 8
//
// and the body is
//
//	uvarint  count of operations, then for each
//	uvarint  length of the key × 2, plus 1 if it is a delete
//	uvarint  length of the value, unless it is a delete
//	         key, value
//
// Sequence numbers are dense from 1. A recycled segment still contains frames
// of its earlier use; their numbers are lower than any that is valid there now.
// The salt is 64 random bits, the same in all files of a journal, and stored
// nowhere else. A client that chooses keys and values therefore cannot make
// bytes that pass for a frame.
//
// A frame without a body is a seal. It stands where the frame of its number
// will be written, and shows that all frames before it were synced.
//
// # Why a crash loses nothing
//
// The journal assumes that the disk keeps a sector whose content a write does
// not change, whatever happens; that the file system renames atomically; and
// that renames and removals in a directory survive in their order.
//
// Append. A frame is written and synced before the next one is begun and before
// its commits return, so at most the last frame can be torn. An invalid frame
// therefore ends the log if no valid frame with its number or a higher one
// follows, in the rest of the segment or in later ones. If one follows, the
// invalid frame was synced once, and Open returns ErrDamaged. The remains of a
// torn frame have no valid header. They are overwritten, or lie in the unused
// end of a segment.
//
// Zeros. After a small frame, space that was allocated and never written gets
// zeros, in the same sync. It reads as zeros already, so that whatever part of
// them survives changes nothing. The next syncs then write no metadata.
//
// After a failed write or sync the journal accepts nothing more. A failed sync
// may leave pages in memory that count as clean and never reached the disk.
// Open therefore rewrites the last frame that it finds, byte for byte, before
// it syncs, unless a seal shows that the frame was synced.
//
// Seal. When the writer has nothing to write it puts a seal after the last
// frame, without a sync. The seal is written after that frame's sync, so it is
// true if it survives; if it does not, nothing is lost. The next frame
// overwrites it.
//
// Roll. The next segment is made under a temporary name: allocated, labelled,
// synced, then renamed, and the directory synced, all before the writer gets
// it. So a segment with its own name has a whole label, and no number is
// missing. Segments grow: a prepared segment that is too small for a commit
// holds no frame yet, and is replaced by a larger one of its number in the same
// way. The old segment need not be full: the log continues in the next segment
// if that begins with the expected number. If the first frame there is torn,
// the log ends in the old segment, which may have room for the next frame; the
// new segment waits with nothing valid in it.
//
// Release. The new checkpoint is written under a temporary name, synced,
// renamed, and the directory synced. Until then the old checkpoint is valid and
// all its segments are there; only then are segments before the new one's first
// touched. A crash in between leaves some of them, which Open puts aside. Open
// syncs the directory first: the checkpoint that it reads must not be undone
// afterwards.
//
// Recycle. A released segment is renamed to a spare, and made into a segment
// with a new number as above. Whichever of these steps survives, the file is
// before the checkpoint, a spare, or a prepared segment. The numbers of its old
// frames are lower than the expected one.
//
// Create. The first segment is made before the checkpoint. A crash in between
// leaves a segment without a frame and no checkpoint, and Open begins again.
// Frames without a checkpoint are damage.
//
// Close. The checkpoint records the last frame. If that frame is missing when
// the journal is next opened, that is damage. Open removes the record before it
// returns.
//
// # What is not noticed
//
// Damage to the last frame looks like a torn write if the power failed before
// its seal was written back, and the frame is dropped. The same holds for
// missing last segments of a journal that was not closed. After a kill of the
// process the seal is there, and after Close the record.
package journal
