"""How the stream processors speak to Kafka.

options         what each client is made with, and why
errors          what Kafka's errors mean; asking again while they pass
rights          what each process may do, and whether it may
reading         topics, read to their ends
group_offsets   what a group has committed
topic_ids       by which a recreated topic is known
fencing         the transactional producer of a partition
deliveries      which records have been acknowledged
news            that brokers went away, and that they are back
"""
