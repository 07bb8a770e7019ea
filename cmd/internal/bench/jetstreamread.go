package bench

import (
	"context"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// pullBuffer is how many messages the ordered consumer buffers. Of 500 (the
// client's default), 2,000, 10,000 and 50,000, a larger one is not faster.
const pullBuffer = 10_000

// consumption reads a stream with an ordered consumer of the Go client.
type consumption struct {
	nc     *nats.Conn
	js     jetstream.JetStream
	stream string
	push   bool // use the older ordered push consumer
	new    bool // only new messages
}

func newConsumption(url, stream string, push, onlyNew bool) (*consumption, error) {
	nc, err := connect(url, func(error) {})
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	return &consumption{nc: nc, js: js, stream: stream, push: push, new: onlyNew}, nil
}

// consume calls handle with each message's payload until stop is called.
func (c *consumption) consume(ctx context.Context, handle func(payload []byte)) (stop func(), err error) {
	if c.push {
		return c.pushed(handle)
	}
	var conf jetstream.OrderedConsumerConfig
	if c.new {
		conf.DeliverPolicy = jetstream.DeliverNewPolicy
	}
	consumer, err := c.js.OrderedConsumer(ctx, c.stream, conf)
	if err != nil {
		return nil, fmt.Errorf("ordered consumer of %s: %w", c.stream, err)
	}
	consuming, err := consumer.Consume(func(m jetstream.Msg) { handle(m.Data()) }, jetstream.PullMaxMessages(pullBuffer))
	if err != nil {
		return nil, fmt.Errorf("consume %s: %w", c.stream, err)
	}
	return consuming.Stop, nil
}

func (c *consumption) pushed(handle func(payload []byte)) (stop func(), err error) {
	js, err := c.nc.JetStream()
	if err != nil {
		return nil, fmt.Errorf("jetstream: %w", err)
	}
	opts := []nats.SubOpt{nats.OrderedConsumer(), nats.BindStream(c.stream)}
	if c.new {
		opts = append(opts, nats.DeliverNew())
	}
	sub, err := js.Subscribe(c.stream+".>", func(m *nats.Msg) { handle(m.Data) }, opts...)
	if err != nil {
		return nil, fmt.Errorf("ordered consumer of %s: %w", c.stream, err)
	}
	return func() { _ = sub.Unsubscribe() }, nil
}

// newStreamCatchUp reads a stream to its last sequence.
func newStreamCatchUp(at workerConfig, stream string, last uint64, push bool) (*catchUp, error) {
	c, err := newConsumption(at.url, stream, push, false)
	if err != nil {
		return nil, err
	}
	read := func(ctx context.Context, p *readPass) error {
		stop, err := c.consume(ctx, func([]byte) { p.message() })
		if err != nil {
			return err
		}
		defer stop()
		return p.wait(ctx)
	}
	return newCatchUp(at, last, read, c.nc.Close), nil
}
