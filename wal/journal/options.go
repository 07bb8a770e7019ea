package journal

import "fmt"

// Defaults and bounds of Options.
const (
	defaultSegmentSize = 64 << 20
	defaultFirstSize   = 1 << 20

	// defaultMaxFrame is the size in bytes at which merging stops. A larger
	// Commit gets a frame of its own. Larger frames mean fewer syncs under
	// load, and a longer wait for the first commit of a frame.
	defaultMaxFrame = 8 << 20

	// defaultMaxQueue is how many bytes of operations may wait for the writer
	// before Commit blocks. An empty queue takes any one.
	defaultMaxQueue = 64 << 20

	// maxSpares is how many released segments are kept for use again, in
	// addition to the one that is prepared for the next roll.
	maxSpares = 2

	minSegmentSize = 2 * labelBlock
	maxSegmentSize = 1 << 30 // a frame's length is 32 bits, with room to spare
)

// Options configures a journal. The zero value is the default.
type Options struct {
	// FS is what the journal reads and writes through. Default OSFS.
	FS FS

	// SegmentSize is the size of the largest segments in bytes, from 8 KiB to
	// 1 GiB and a multiple of 4 KiB. It bounds the operations of one Commit. A
	// journal may be opened with another size than before: segments that hold
	// frames keep theirs. Default 64 MiB.
	SegmentSize int64

	// FirstSize is the size of a new journal's first segment, within the same
	// bounds. Each segment has twice the size of the one before, up to
	// SegmentSize, so that a journal takes space in proportion to what was
	// written. A Commit that does not fit waits until a large enough segment is
	// made. Default 1 MiB, or SegmentSize if that is less.
	FirstSize int64

	// Room is called before a segment takes bytes more of the disk. If it
	// returns an error, a smaller segment is tried, and if that fails too the
	// commit returns ErrNoSpace. If a frame waits for the segment, Room is
	// called once more with awaited set, for the smallest segment that holds
	// the frame. If Room is nil only the disk limits segments.
	Room func(bytes int64, awaited bool) error

	// StoreID identifies the store that the journal belongs to. It is written
	// into every file when the journal is created; Open refuses a journal with
	// another one. The zero value accepts any.
	StoreID [16]byte

	// Synced is called for every frame, in order, after it was synced and
	// before any Commit in it returns. It runs on the writer's goroutine: while
	// it blocks nothing is written, and commits wait. It must not call the
	// journal's Commit or Close. It may keep the slices.
	Synced func(seq uint64, ops []Op)

	// These are defaultMaxFrame and defaultMaxQueue, except in tests.
	maxFrame int
	maxQueue int64
}

// withDefaults returns o with defaults for zero fields, after checking the
// others.
func (o Options) withDefaults() (Options, error) {
	if o.FS == nil {
		o.FS = OSFS
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = defaultSegmentSize
	}
	if o.SegmentSize < minSegmentSize || o.SegmentSize > maxSegmentSize || o.SegmentSize%labelBlock != 0 {
		return o, fmt.Errorf("segment size %d is not a multiple of %d from %d to %d: %w",
			o.SegmentSize, labelBlock, minSegmentSize, maxSegmentSize, ErrOptions)
	}
	if o.FirstSize == 0 {
		o.FirstSize = min(defaultFirstSize, o.SegmentSize)
	}
	if o.FirstSize < minSegmentSize || o.FirstSize > o.SegmentSize || o.FirstSize%labelBlock != 0 {
		return o, fmt.Errorf("first segment size %d is not a multiple of %d from %d to %d: %w",
			o.FirstSize, labelBlock, minSegmentSize, o.SegmentSize, ErrOptions)
	}
	if o.maxFrame == 0 {
		o.maxFrame = defaultMaxFrame
	}
	if o.maxQueue == 0 {
		o.maxQueue = defaultMaxQueue
	}
	return o, nil
}

// sizeAfter returns the size of the segment after one of the given size. It has
// room for a frame of need bytes.
func (o Options) sizeAfter(size, need int64) int64 {
	next := max(2*size, o.FirstSize)
	for next < labelBlock+need {
		next *= 2
	}
	return min(next-next%labelBlock, o.SegmentSize)
}
