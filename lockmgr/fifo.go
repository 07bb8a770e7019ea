package lockmgr

// fifo holds the records of ids in the order in which they were added,
// identified by number. They are added at either end and removed in order;
// nothing is ever copied.
type fifo[T any] struct {
	chunks []*[fifoChunk]T
	spare  *[fifoChunk]T
	first  uint64 // of the oldest; chunks begin with its chunk
	next   uint64 // after the newest
}

const (
	fifoChunk = 1024
	fifoStart = 1 << 40   // the first number ever: there is room on both sides
	fifoMask  = 1<<31 - 1 // the most records that are held
)

func newFIFO[T any]() fifo[T] { return fifo[T]{first: fifoStart, next: fifoStart} }

func (f *fifo[T]) len() int { return int(f.next - f.first) }

// short returns a number in 32 bits, never 0, for use in an index.
func (f *fifo[T]) short(n uint64) uint32 { return uint32(n)&fifoMask + 1 }

// number returns the number that short stands for, and reports whether its
// record is held.
func (f *fifo[T]) number(short uint32) (n uint64, held bool) {
	after := (short - 1 - uint32(f.first)) & fifoMask
	return f.first + uint64(after), uint64(after) < f.next-f.first
}

func (f *fifo[T]) at(n uint64) *T {
	return &f.chunks[n/fifoChunk-f.first/fifoChunk][n%fifoChunk]
}

func (f *fifo[T]) addNewest(r T) uint64 {
	if f.next/fifoChunk-f.first/fifoChunk == uint64(len(f.chunks)) {
		f.chunks = append(f.chunks, f.chunk())
	}
	f.next++
	*f.at(f.next - 1) = r
	return f.next - 1
}

func (f *fifo[T]) addOldest(r T) uint64 {
	if len(f.chunks) == 0 || f.first%fifoChunk == 0 {
		f.chunks = append([]*[fifoChunk]T{f.chunk()}, f.chunks...)
	}
	f.first--
	*f.at(f.first) = r
	return f.first
}

func (f *fifo[T]) dropOldest() {
	f.first++
	if f.first%fifoChunk == 0 {
		f.spare, f.chunks[0] = f.chunks[0], nil
		f.chunks = f.chunks[1:]
	}
}

func (f *fifo[T]) dropNewest() { f.next-- }

func (f *fifo[T]) chunk() *[fifoChunk]T {
	if c := f.spare; c != nil {
		f.spare = nil
		return c
	}
	return new([fifoChunk]T)
}
