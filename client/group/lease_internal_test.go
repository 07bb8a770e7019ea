package group

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cantuslog/cantus/client"
)

// shared is a cursor on a slow and lossy wire, in synctest's time.
type shared struct {
	mu     sync.Mutex
	pos    client.Position
	random *rand.Rand
	worst  time.Duration
	calls  sync.WaitGroup
}

// delay is mostly short, and now and then as long as the worst.
func (s *shared) delay() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.random.IntN(10) == 0 {
		return time.Duration(s.random.Int64N(int64(s.worst)))
	}
	return time.Duration(s.random.Int64N(int64(s.worst / 50)))
}

// call is done at some moment, and answered later, unless ctx ends before:
// then it may be done all the same.
func (s *shared) call(ctx context.Context, do func()) (client.Position, error) {
	answer := make(chan client.Position, 1)
	there, back := s.delay(), s.delay()
	s.calls.Go(func() {
		time.Sleep(there)
		s.mu.Lock()
		do()
		pos := s.pos
		s.mu.Unlock()
		time.Sleep(back)
		answer <- pos
	})
	select {
	case pos := <-answer:
		return pos, nil
	case <-ctx.Done():
		return client.Position{}, ctx.Err()
	}
}

func (s *shared) Get(ctx context.Context) (client.Position, error) { return s.call(ctx, func() {}) }

func (s *shared) Set(ctx context.Context, txid uint64) (client.Position, error) {
	return s.call(ctx, func() {
		last := s.pos.Time
		s.pos.Txid, s.pos.Time = txid, time.Now()
		if !s.pos.Time.After(last) {
			s.pos.Time = last.Add(1)
		}
	})
}

// TestLeaseIsHeldByOneAtATime has members hold, lose, release and abandon a
// lease for hours of synctest's time, whatever the wire does.
func TestLeaseIsHeldByOneAtATime(t *testing.T) {
	const term, members = 6 * time.Second, 4
	for _, worst := range []time.Duration{term / 100, term / 3, term, 3 * term} {
		t.Run(worst.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				seed := rand.Uint64()
				t.Logf("seed %d", seed)
				s := &shared{random: rand.New(rand.NewPCG(seed, 0)), worst: worst, pos: client.Position{HighWaterMark: 1}}
				var mu sync.Mutex
				until := make([]time.Time, members)
				begins := make([]int, members)
				end := time.Now().Add(4 * time.Hour)
				var wg sync.WaitGroup
				for i := range members {
					wg.Go(func() {
						random := rand.New(rand.NewPCG(seed, uint64(i)))
						l := newLease(s, term)
						for time.Now().Before(end) {
							ctx, cancel := context.WithTimeout(t.Context(), term/3)
							_ = l.keep(ctx) // what failed counts as nothing done
							cancel()
							mu.Lock()
							if l.held() {
								for j, other := range until {
									if j != i && time.Now().Before(other) {
										t.Errorf("%d holds it up to %v, and %d up to %v", i, l.until, j, other)
									}
								}
								if until[i].Before(time.Now()) {
									begins[i]++
								}
								until[i] = l.until
							}
							mu.Unlock()
							switch random.IntN(100) {
							case 0: // what it was held for is over first
								mu.Lock()
								until[i] = time.Time{}
								mu.Unlock()
								ctx, cancel := context.WithTimeout(t.Context(), term/3)
								_ = l.release(ctx)
								cancel()
							case 1: // a crash, and another in its place
								mu.Lock()
								if !l.until.IsZero() {
									until[i] = time.Time{}
								}
								mu.Unlock()
								l = newLease(s, term)
							}
							time.Sleep(term / 4)
						}
					})
				}
				wg.Wait()
				s.calls.Wait()
				for i, n := range begins {
					if n == 0 && worst < term {
						t.Errorf("%d never held it", i)
					}
				}
				t.Logf("begun to hold %v times", begins)
			})
		})
	}
}
