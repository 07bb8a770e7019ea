package broker

// services are the functions of a node that several of its parts need.
type services struct {
	fail       func(error)                               // stops the node
	failed     func() error                              // why it was stopped, nil if it was not
	advise     func(event string, fields map[string]any) // publishes an advisory
	background func(func())                              // runs a function that Close waits for
	quit       <-chan struct{}                           // closed when the node begins to stop
}
