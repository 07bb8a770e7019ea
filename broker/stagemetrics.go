package broker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// stageMetrics are histograms of the time that appends spend in each stage, one
// value for each batch and stage. Their sum is the time that the batch's oldest
// message spent on this node. A leader writes to its disk while the followers
// write to theirs: replicate is the time that they take longer.
type stageMetrics struct {
	queue     prometheus.Observer // from the server's socket to the sequencer
	certify   prometheus.Observer
	propose   prometheus.Observer // until raft takes it up
	disk      prometheus.Observer // until it is synced here
	replicate prometheus.Observer // until it is committed and what is before it applied
	apply     prometheus.Observer
	reply     prometheus.Observer // until the answers are with the NATS server
}

func newStageMetrics(r prometheus.Registerer) stageMetrics {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "cantus", Name: "append_stage_seconds",
		Help:    "What a batch of appends, and in the first stage its oldest message, spent in each stage on its leader.",
		Buckets: prometheus.ExponentialBuckets(0.00001, 2, 18),
	}, []string{"stage"})
	r.MustRegister(v)
	of := func(stage string) prometheus.Observer { return v.WithLabelValues(stage) }
	return stageMetrics{
		queue: of("queue"), certify: of("certify"), propose: of("propose"), disk: of("disk"),
		replicate: of("replicate"), apply: of("apply"), reply: of("reply"),
	}
}

// observe observes a batch that was committed and whose replies were sent at
// now.
func (s stageMetrics) observe(b *batch, now time.Time) {
	a := b.applied
	if a.taken.IsZero() {
		return // it was committed by another leader
	}
	for _, stage := range []struct {
		prometheus.Observer
		from, to time.Time
	}{
		{s.queue, b.received, b.certified}, {s.certify, b.certified, b.proposed}, {s.propose, b.proposed, a.taken}, {s.disk, a.taken, a.synced},
		{s.replicate, a.synced, a.begun}, {s.apply, a.begun, a.done}, {s.reply, a.done, now},
	} {
		stage.Observe(max(0, stage.to.Sub(stage.from)).Seconds())
	}
}
