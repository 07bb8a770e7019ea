package bench

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strconv"
)

// pool is a set of key names, all of one length. A name is made when it is
// used: looking up one of a million would take longer.
type pool struct {
	prefix string
	digits int
	size   int
	zipf   *zipf // nil for a uniform distribution
}

// newPool returns a pool of the names prefix0000000 to prefix<size-1>, with a
// skew.
func newPool(prefix string, size int, skew float64) pool {
	p := pool{prefix: prefix, digits: len(strconv.Itoa(size - 1)), size: size}
	if skew > 0 {
		p.zipf = newZipf(skew, size)
	}
	return p
}

// name returns the name of key i.
func (p pool) name(i int) string {
	var room [32]byte
	b := append(room[:0], p.prefix...)
	end := len(b) + p.digits
	b = append(b, "0000000000000000000"[:p.digits]...)
	for at := end - 1; i > 0; at-- {
		b[at] = byte('0' + i%10)
		i /= 10
	}
	return string(b)
}

// pick fills keys with distinct random keys. The pool must have at least as
// many.
func (p pool) pick(rng *rand.Rand, keys []int) {
	for i := range keys {
		k := p.draw(rng)
		for tries := 0; slices.Contains(keys[:i], k); tries++ {
			if k = p.draw(rng); tries > 10 {
				k = rng.IntN(p.size) // with much skew a few keys take nearly all draws
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

// payloads makes distinct payloads of one size that do not compress.
type payloads struct {
	noise   []byte
	size    int
	at      int
	stamped bool // each begins with the time at which it was sent
}

// stampSize is the size of the time in a payload.
const stampSize = 8

func newPayloads(rng *rand.Rand, size int, stamped bool) *payloads {
	noise := make([]byte, size+64<<10)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	return &payloads{noise: noise, size: size, stamped: stamped}
}

// next returns the payload of a request sent at sent. The caller must not write
// to it. It may reuse the memory of old, an earlier payload.
func (p *payloads) next(old []byte, sent int64) []byte {
	p.at = (p.at + 61) & (64<<10 - 1)
	b := p.noise[p.at : p.at+p.size : p.at+p.size]
	if p.stamped {
		b = append(old[:0], b...)
		binary.BigEndian.PutUint64(b, uint64(sent))
	}
	return b
}

// stamp returns the time in a stamped payload.
func stamp(payload []byte) int64 {
	if len(payload) < stampSize {
		return 0
	}
	return int64(binary.BigEndian.Uint64(payload))
}

func newRand(conn int) *rand.Rand { return rand.New(rand.NewPCG(1, uint64(conn))) }
