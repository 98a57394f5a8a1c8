module gatehouse/gpio

go 1.24
