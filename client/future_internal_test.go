package client

import (
	"sync"
	"testing"
)

// Every waiter gets the outcome, whether it waits before, while or after it is
// set.
func TestAFutureWakesAllWaiters(t *testing.T) {
	for range 20_000 {
		f := &Future{}
		var waiting sync.WaitGroup
		for range 3 {
			waiting.Go(func() {
				if r, err := f.Wait(t.Context()); r.Txid != 7 || err != nil {
					t.Errorf("%+v, %v", r, err)
				}
			})
			waiting.Go(func() {
				if <-f.Done(); f.receipt.Txid != 7 {
					t.Errorf("%+v", f.receipt)
				}
			})
		}
		waiting.Go(func() {
			if !f.complete(Receipt{Txid: 7}, nil) || f.complete(Receipt{Txid: 8}, nil) {
				t.Error("not completed exactly once")
			}
		})
		waiting.Wait()
	}
}
