package bench

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// pool is a set of key names, all of one length, in one string: a million
// strings of their own would cost the load generator's garbage collector more
// than the load.
type pool struct {
	names string
	width int
	size  int
}

// newPool makes the names prefix0000000 to prefix<size-1>.
func newPool(prefix string, size int) pool {
	digits := len(fmt.Sprint(size - 1))
	var b strings.Builder
	b.Grow(size * (len(prefix) + digits))
	for i := range size {
		fmt.Fprintf(&b, "%s%0*d", prefix, digits, i)
	}
	return pool{names: b.String(), width: len(prefix) + digits, size: size}
}

// name gives the name of key i.
func (p pool) name(i int) string { return p.names[i*p.width : (i+1)*p.width] }

// pick fills keys with different keys at random. There must be no more of
// them than the pool has.
func (p pool) pick(rng *rand.Rand, keys []int) {
	for i := range keys {
	again:
		keys[i] = rng.IntN(p.size)
		for j := range i {
			if keys[j] == keys[i] {
				goto again
			}
		}
	}
}

// payloads gives payloads of one size that differ and do not compress.
type payloads struct {
	noise []byte
	size  int
	at    int
}

func newPayloads(rng *rand.Rand, size int) *payloads {
	noise := make([]byte, size+64<<10)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	return &payloads{noise: noise, size: size}
}

// next gives a payload, which the caller must not write to. It stays as it is.
func (p *payloads) next() []byte {
	p.at = (p.at + 61) & (64<<10 - 1)
	return p.noise[p.at : p.at+p.size : p.at+p.size]
}

func newRand(conn int) *rand.Rand { return rand.New(rand.NewPCG(1, uint64(conn))) }
