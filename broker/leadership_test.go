package broker

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// A change that was queued before the tenure began says nothing about it.
func TestOldNewsEndsNoTenure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		changes := make(chan bool, 1)
		var leads atomic.Bool
		leads.Store(true)
		changes <- true // of the very election that this tenure follows
		lost, ended := false, make(chan struct{})
		go func() {
			defer close(ended)
			lost = awaitLoss(t.Context(), changes, leads.Load)
		}()
		synctest.Wait()
		select {
		case <-ended:
			t.Fatal("old news ends a tenure")
		default:
		}
		leads.Store(false)
		changes <- false
		<-ended
		if !lost {
			t.Error("the loss is not reported")
		}
	})
}

func TestATenureThatIsStoppedHasNotLost(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if awaitLoss(ctx, make(chan bool), func() bool { return true }) {
		t.Error("a tenure that ends by itself is said to have lost leadership")
	}
	if !awaitLoss(t.Context(), make(chan bool), func() bool { return false }) {
		t.Error("leadership that is gone before the wait begins is not reported")
	}
}
