package bench

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strconv"
)

// pool is a set of key names, all of one length, in one string: a million
// strings of their own would cost the load generator's garbage collector more
// than the load.
type pool struct {
	names string
	width int
	size  int
	zipf  *zipf // nil if all keys are taken alike
}

// newPool makes the names prefix0000000 to prefix<size-1>, taken with a skew.
func newPool(prefix string, size int, skew float64) pool {
	digits := len(strconv.Itoa(size - 1))
	b := make([]byte, 0, size*(len(prefix)+digits))
	for i := range size {
		b = append(b, prefix...)
		for range digits - len(strconv.Itoa(i)) {
			b = append(b, '0')
		}
		b = strconv.AppendInt(b, int64(i), 10)
	}
	p := pool{names: string(b), width: len(prefix) + digits, size: size}
	if skew > 0 {
		p.zipf = newZipf(skew, size)
	}
	return p
}

// name gives the name of key i.
func (p pool) name(i int) string { return p.names[i*p.width : (i+1)*p.width] }

// pick fills keys with different keys at random. There must be no more of
// them than the pool has.
func (p pool) pick(rng *rand.Rand, keys []int) {
	for i := range keys {
		k := p.draw(rng)
		for tries := 0; slices.Contains(keys[:i], k); tries++ {
			if k = p.draw(rng); tries > 10 {
				k = rng.IntN(p.size) // a few keys take nearly all draws
			}
		}
		keys[i] = k
	}
}

func (p pool) draw(rng *rand.Rand) int {
	if p.zipf != nil {
		return p.zipf.draw(rng)
	}
	return rng.IntN(p.size)
}

// payloads gives payloads of one size that differ and do not compress.
type payloads struct {
	noise   []byte
	size    int
	at      int
	stamped bool // each begins with the time at which its slot's request was sent
}

// stampSize is how many bytes of a payload the time takes.
const stampSize = 8

func newPayloads(rng *rand.Rand, size int, stamped bool) *payloads {
	noise := make([]byte, size+64<<10)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	return &payloads{noise: noise, size: size, stamped: stamped}
}

// next gives a slot's payload, which the caller must not write to. It stays as
// it is until the slot's next.
func (p *payloads) next(s *slot) []byte {
	p.at = (p.at + 61) & (64<<10 - 1)
	b := p.noise[p.at : p.at+p.size : p.at+p.size]
	if p.stamped {
		s.buf = append(s.buf[:0], b...)
		binary.BigEndian.PutUint64(s.buf, uint64(s.sent))
		b = s.buf
	}
	return b
}

// stamp gives the time in a stamped payload.
func stamp(payload []byte) int64 {
	if len(payload) < stampSize {
		return 0
	}
	return int64(binary.BigEndian.Uint64(payload))
}

func newRand(conn int) *rand.Rand { return rand.New(rand.NewPCG(1, uint64(conn))) }
