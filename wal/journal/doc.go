// Package journal is an append-only log of key operations, one synced write
// for all that waits: a node's write-ahead log.
//
// A Journal takes groups of operations (Op) by Commit. Those of all callers
// that wait while a frame is being written are merged into the next one, which
// is written and synced once. When Commit returns nil its operations survive
// power loss, all of them or none, in the order in which commits were enqueued.
// Open replays what was not released; Release lets go of the head. There is no
// index and no reading but at Open. Everything passes through FS, a seam by
// which tests fail and crash it at every operation.
//
// One goroutine writes, another makes the next segment ready. All methods may
// be called concurrently. One process may have a journal open.
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
//	checkpoint.tmp, segment.tmp    in the making
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
// Sequence numbers are dense from 1. Frames that an earlier use has left in a
// segment have lower numbers than any that may stand there now. The salt is
// random, of 64 bits, the same in all files of a journal, and known to nobody
// but the files: somebody who chooses keys and values cannot make bytes that
// pass for a frame.
//
// A frame without a body is a seal. It stands where the frame of its number
// will go, and shows that all before it were synced.
//
// # Why a crash loses nothing
//
// Assumed is of the disk that a sector whose content a write does not change
// keeps it, whatever happens; and of the file system that a rename is there or
// not, and that renames and removals in a directory survive in their order.
//
// Append. A frame is written and synced before the next one is begun, and
// before anybody is told of it, so that at most the last frame can be torn. A
// frame that is not valid therefore ends the log if nothing valid with its
// number or a higher one follows, in the rest of the segment or in later ones.
// If something does, the frame was synced once, and Open returns ErrDamaged.
// What the torn frame leaves behind has no header that is valid and is written
// over, or lies in a segment's unused end.
//
// After a failed write or sync the journal accepts nothing more. A sync that
// failed may leave pages in memory that count as clean and never reached the
// disk. Open therefore writes the last frame that it finds again, byte for
// byte, before it syncs, unless a seal shows that it was synced.
//
// Seal. When the writer has nothing to write it puts a seal after the last
// frame, without a sync. If it survives it proves something true; if it does
// not, nothing is lost; it is written after that frame's sync and before the
// next frame, which takes its place.
//
// Roll. The next segment is made under a temporary name: allocated, labelled,
// synced, then renamed, and the directory synced, all before the writer gets
// it. So a segment with its own name has a whole label, and no number is
// missing. Segments grow: one that is ready and too small for a commit is replaced
// by a larger one of its number in the same way; it held no frame. Whether the end of the old one was used up does not matter: the log
// goes on in the next segment if that begins with the number that is due. If
// the first frame there is torn, the log's end is in the old segment, which may
// have room for the next frame; the new segment waits with nothing valid in it.
//
// Release. The new checkpoint is written under a temporary name, synced,
// renamed, and the directory synced. Before that the old one counts and all its
// segments are there; only after it are segments before its first one touched.
// A crash in between leaves some that Open puts aside. Open syncs the directory
// first: the checkpoint that it reads must not be taken back afterwards.
//
// Recycle. A released segment is renamed to a spare, and made into a segment
// with a new number as above. Whichever of that survives, it is before the
// checkpoint, a spare, or a segment that is ready. Its old frames are of lower
// numbers than what is due.
//
// Create. First a segment is made, then the checkpoint. A segment without a
// frame and without a checkpoint is what a crash in between leaves, and Open
// begins again; frames without a checkpoint are damage.
//
// Close. The checkpoint notes the last frame. Whatever is missing when the
// journal is opened next is damage; Open takes the note back before it returns.
//
// # What is not noticed
//
// Bytes changed in the last frame after a power cut that came before its seal
// was written back look like a torn write, and the frame is dropped; so do the
// last segments taken away, if the journal was not closed. After a kill
// of the process the seal is there, and after Close the note.
package journal
