package broker

import (
	"testing"
	"testing/synctest"
)

// TestLeadershipIsTransferredWhenNothingIsInFlight: until then batches may
// begin again.
func TestLeadershipIsTransferredWhenNothingIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s tenureEnd
		if !s.drain(t.Context()) {
			t.Error("there was no tenure, and it was not drained")
		}
		slots := make(chan struct{}, maxInflight)
		s.slots.Store(&slots)
		slots <- struct{}{}
		if s.drain(t.Context()) {
			t.Error("drained with a batch in flight")
		}
		if len(slots) != 1 {
			t.Errorf("%d slots are taken afterwards", len(slots))
		}
		<-slots
		if !s.drain(t.Context()) || len(slots) != maxInflight {
			t.Errorf("not drained with nothing in flight: %d slots are taken", len(slots))
		}
	})
}
